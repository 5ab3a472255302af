"""One engine as its host sees it: whether it is loading, ready or dead, and what is reported of it, in order.

`Probe` asks the engine over its socket and judges the answers; `Handle` reports to the runner.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from greenroom.actors.engine_runner.events import (
    EngineAdopted,
    EngineExited,
    EngineLoaded,
    EngineLost,
    EngineReady,
    EngineSpawned,
)
from greenroom.actors.engine_runner.messages import EngineMeasured, EngineMoved, EngineStalled, runner_address
from greenroom.actors.kernel.core import Event
from greenroom.actors.progress import ProgressBoard, load_job
from greenroom.actors.reports import Happened, TellActor
from greenroom.actors.values import EngineExit, EngineSpec, Failure, Loaded, Measured, Mode, Progress
from greenroom.runner.backends.base import CommandLine, Readiness
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.engines.keeper_watch import Channel
from greenroom.runner.engines.reachability import EngineConnection, inode_of
from greenroom.runner.errors import blamed
from greenroom.runner.systems import here

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedEngine:
    """One engine's program and how to tell that it is ready."""

    command: CommandLine
    readiness: Readiness
    model_name: str = ""
    """What the one-token proof sends as `model`."""
    version: str = ""
    """Version of the installation, for the exit report."""
    data_limit: int = 0
    """Bytes of memory of its own beyond which the system refuses it more; 0 for no limit."""


Prepare = Callable[[EngineSpec, Path], PreparedEngine]


Ladder = Sequence[tuple[str, float]]
"""Signals, each with the seconds until the next."""


_TOLD_AGAIN = 5.0
"""Seconds after which it is reported again that an engine should be replaced, if it still runs."""
_BATCH_OPTIONS = ("--batch-size", "-b")


def batch_of(argv: Sequence[str]) -> int:
    """Tokens of a prompt computed at once, according to a command line; 0 if it does not say."""
    given = [after for word, after in pairwise(argv) if word in _BATCH_OPTIONS]
    return int(given[-1]) if given and given[-1].isdigit() else 0


class Handle:
    """One engine. Its lock orders the reports: nothing follows an end."""

    def __init__(self, spec: EngineSpec, folder: EngineFolder, tell: TellActor, board: ProgressBoard) -> None:
        self.spec = spec
        self.folder = folder
        self._tell_actor = tell
        self._board = board
        self._lock = threading.RLock()
        self.channel: Channel | None = None
        self.spawned = threading.Event()
        """The process runs, or never will."""
        self.over = threading.Event()
        self.pid = 0
        self.started = 0.0
        self.endpoint = Path()
        self.readiness = Readiness()
        self.model_name = ""
        self.batch = 0
        """Tokens of a prompt it computes at once at most; 0 if unknown."""
        self.inode = 0
        """The socket file's, when the engine was seen to answer."""
        self.halted_at = 0.0
        """Monotonic time at which its keeper saw it stopped by a signal; 0 while it runs."""
        self.given_up_at = 0.0
        """Monotonic time of the last report that it should be replaced; 0 for never."""
        self.may_finish = False
        """Requests inside are still answered, though no new one can reach it: its end waits for them."""
        self.loaded: Loaded | None = None
        """What it says about its layers on devices."""
        self.was_ready = False
        self.served = False
        """Clients may have been inside, also under an earlier daemon: its output may contain their text."""
        self.answers = False
        """This host has seen it answer."""
        self.stop_requested = False
        self.stop_sent = False
        self.stop_reason = ""
        """The reason given with the request to stop."""
        self.fault = ""
        """Why the host ends it on its own; makes the exit unexpected."""
        self.ladder: Ladder | None = None
        """How to end it; None for the host's default."""
        self.distrust = ""
        """Why it is ended instead of adopted; its end is then reported as lost."""
        self.kill_at = 0.0
        """Monotonic time after which the host no longer waits for the keeper; 0 when not stopping."""

    @property
    def engine_id(self) -> str:
        return self.spec.engine_id

    @property
    def serves(self) -> bool:
        """It answers, and was not asked to end."""
        return self.answers and self.wanted

    @property
    def wanted(self) -> bool:
        """It was not asked to end, and has not."""
        return not (self.stop_requested or self.fault or self.over.is_set())

    def probe(self) -> Probe:
        return Probe(
            self.endpoint, self.readiness, model_name=self.model_name, leader=self.pid, mode=self.spec.mode
        )

    def about(self, prepared: PreparedEngine) -> dict[str, Any]:
        """What the claim stores, so that the next daemon can adopt the engine."""
        return {
            "spec": msgspec.to_builtins(self.spec),
            "readiness": {
                "path": prepared.readiness.path,
                "loading": sorted(prepared.readiness.loading),
                "dead": sorted(prepared.readiness.dead),
                "proof": prepared.readiness.proof,
                "counters": list(prepared.readiness.counters),
                "rests": prepared.readiness.rests,
            },
            "batch": batch_of(prepared.command.argv),
            "model_name": prepared.model_name,
            "version": prepared.version,
        }

    def learn(self, about: dict[str, Any]) -> None:
        """The inverse of `about`; raises KeyError or TypeError for anything else."""
        readiness = about["readiness"]
        self.readiness = Readiness(
            path=str(readiness["path"]),
            loading=frozenset(int(status) for status in readiness["loading"]),
            dead=frozenset(int(status) for status in readiness["dead"]),
            proof=bool(readiness["proof"]),
            counters=tuple(str(path) for path in readiness.get("counters", ())),
            rests=bool(readiness.get("rests")),
        )
        self.batch = int(about.get("batch", 0))
        self.model_name = str(about["model_name"])

    # reports to the runner

    def tell_spawned(self) -> None:
        self._report(
            EngineSpawned(
                engine_id=self.engine_id, pid=self.pid, started=self.started, endpoint=str(self.endpoint)
            )
        )
        self.spawned.set()

    def tell_progress(self, phase: str, message: str) -> None:
        """Loading progress; sent at most about once a second and never stored."""
        progress = Progress(job=load_job(self.engine_id), phase=phase, message=message)
        self._tell(EngineMoved(engine_id=self.engine_id), progress)

    def tell_measured(self, size: Measured) -> None:
        self._tell(EngineMeasured(engine_id=self.engine_id, size=size))

    def tell_ready(self) -> None:
        with self._lock:
            if self.stop_requested or self.fault:
                return
            self.was_ready = self.answers = self.served = True
            self.inode = inode_of(self.endpoint)
            self._board.clear(load_job(self.engine_id))
            self._report(EngineReady(engine_id=self.engine_id))

    def tell_loaded(self, loaded: Loaded) -> None:
        """Where its model lies, as it says itself."""
        self.loaded = loaded
        self._report(EngineLoaded(engine_id=self.engine_id, loaded=loaded, planned=self.spec.on_devices))

    def tell_adopted(self, ready: bool) -> None:
        """An earlier daemon's engine was identified; unless it is ready, that or its end follows."""
        self.was_ready = self.was_ready or ready
        self.answers = ready
        if ready:
            self.inode = inode_of(self.endpoint)
        self._report(
            EngineAdopted(
                engine_id=self.engine_id,
                pid=self.pid,
                started=self.started,
                endpoint=str(self.endpoint),
                ready=ready,
            )
        )

    def tell_kept(self) -> None:
        """A rebuilt runner asks for an engine that this host still has."""
        with self._lock:
            self.given_up_at = 0.0
            if self.pid:
                self.tell_adopted(self.answers)
            else:
                self.tell_progress("starting", "")

    def tell_stalled(self, failure: Failure, ladder: Ladder, *, may_finish: bool = False) -> None:
        """It cannot be reached, was stopped, or does nothing any more.

        It is not ended for that: the runner decides. Then this ladder is used, since a process that does not
        run obeys no polite signal; `may_finish` lets the requests inside finish first.
        """
        now = time.monotonic()
        with self._lock:
            if not self.wanted or (self.given_up_at and now - self.given_up_at < _TOLD_AGAIN):
                return
            self.given_up_at, self.ladder, self.may_finish = now, ladder, may_finish
            self._tell(EngineStalled(engine_id=self.engine_id, failure=failure))

    def tell_failed(self, failure: Failure) -> None:
        """It could not be spawned, so it has done nothing."""
        self.tell_exited(never_spawned(failure))

    def tell_exited(self, end: EngineExit) -> None:
        """It has ended and is reaped."""
        self._end(EngineExited(engine_id=self.engine_id, exit=end))

    def tell_lost(self, reason: str) -> None:
        """There is no such engine, or what was there could not be trusted and was ended."""
        self._end(EngineLost(engine_id=self.engine_id, reason=reason))

    def silence(self) -> None:
        """Report nothing more: the next daemon takes over the engine."""
        self._end(None)

    def _end(self, event: Event | None) -> None:
        with self._lock:
            if self.over.is_set():
                return
            if event is not None:
                self._board.clear(load_job(self.engine_id))
                self._report(event)
            self.over.set()
            self.spawned.set()

    def _report(self, event: Event) -> None:
        self._tell(Happened(event=event))

    def _tell(
        self,
        report: Happened | EngineMoved | EngineMeasured | EngineStalled,
        progress: Progress | None = None,
    ) -> None:
        with self._lock:
            if self.over.is_set():
                return
            try:
                if progress is not None:
                    self._board.publish(progress)
                self._tell_actor(runner_address(self.spec.backend), report)
            except Exception:  # noqa: BLE001 - the engine must be kept all the same
                _log.exception("engine %s: a report could not be delivered", self.engine_id)


def never_spawned(failure: Failure) -> EngineExit:
    failure = blamed(failure)
    return EngineExit(
        at=time.time(),
        summary=failure.sentence(),
        last_lines=tuple(failure.detail.splitlines()[-20:]),
        failure=failure,
    )


# whether it is ready

PROBE_SECONDS = 1.0
"""A later health response counts as none; the next probe asks again."""
PROOF_SECONDS = (2.0, 4.0, 8.0, 16.0, 30.0)
"""Limits of successive proof requests: a server that queues them while it loads answers one of the first."""
_SMALLEST: dict[Mode, tuple[str, dict[str, object]]] = {
    "completion": ("/v1/completions", {"prompt": "Hello", "max_tokens": 1, "temperature": 0}),
    "embedding": ("/v1/embeddings", {"input": "Hello"}),
    "reranking": ("/rerank", {"query": "Hello", "documents": ["Hello"]}),
}
"""The smallest requests that show an engine can compute."""
CPU_SHARE = 0.02
"""Of one core; idle servers use less than this, so less is no sign of progress."""


_SLEPT = 10.0
"""Seconds between two observations (normally one second apart) that count as not monitored."""


class ProbeResult(Enum):
    SILENT = "silent"
    """No listener, or no response in time."""
    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"
    """The process lives, but its load has failed for good."""


def judge(readiness: Readiness, status: int | None) -> ProbeResult:
    """What a health status means for this backend; None is no response."""
    if status is None:
        return ProbeResult.SILENT
    if status in readiness.dead:
        return ProbeResult.DEAD
    if status in readiness.loading:
        return ProbeResult.LOADING
    return ProbeResult.READY if 200 <= status < 300 else ProbeResult.LOADING


@dataclass(frozen=True)
class Pulse:
    """Signs of life of a process that does not answer yet."""

    log_size: int
    cpu_seconds: float
    bytes_read: int
    """By calls, or by touching mapped files: a slow disk uses hardly any CPU."""


class ProgressDeadline:
    """Waits as long as the engine makes progress, and knows for how long it has not."""

    def __init__(self, now: float) -> None:
        self._seen: Pulse | None = None
        self._seen_at = now
        self._moved_at = now

    def moved(self, pulse: Pulse, now: float) -> bool:
        """Record an observation; True if there was progress since the last one."""
        before, elapsed = self._seen, now - self._seen_at
        self._seen, self._seen_at = pulse, now
        moved = (
            before is None
            # Nothing was observed for so long: this process was stopped, or the machine slept.
            or elapsed > _SLEPT
            or pulse.log_size != before.log_size
            or pulse.bytes_read > before.bytes_read
            or pulse.cpu_seconds - before.cpu_seconds > CPU_SHARE * elapsed
        )
        if moved:
            self._moved_at = now
        return moved

    def silent_for(self, now: float) -> float:
        return now - self._moved_at


def take_pulse(pid: int, log_size: int) -> Pulse:
    """Of a process and all its descendants; one that has ended no longer counts."""
    import psutil

    cpu, read = 0.0, 0
    with contextlib.suppress(psutil.Error, OSError):
        leader = psutil.Process(pid)
        for process in (leader, *leader.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError):
                times = process.cpu_times()
                cpu += times.user + times.system
                read += here.bytes_read(process.pid)
    return Pulse(log_size=log_size, cpu_seconds=cpu, bytes_read=read)


class Probe:
    """Sends requests to one engine over its unix socket. Every call blocks, bounded; none raises."""

    def __init__(
        self,
        endpoint: Path,
        readiness: Readiness,
        *,
        model_name: str = "",
        leader: int = 0,
        mode: Mode = "completion",
    ) -> None:
        self._endpoint = str(endpoint)
        self._readiness = readiness
        self._model_name = model_name
        self._leader = leader
        self._mode: Mode = mode
        self._proofs = 0

    def look(self) -> ProbeResult:
        """One judgement: by the health path, and by a proof request where the health path is not reliable."""
        found = judge(self._readiness, self._request("GET", self._readiness.path, None, PROBE_SECONDS))
        if found is not ProbeResult.READY or not self._readiness.proof:
            return found
        return self._prove()

    def health(self, bound: float) -> Vitality:
        """The health path's verdict on an engine that was ready."""
        answer = self._ask("GET", self._readiness.path, None, bound)
        if answer.status is not None:
            well = judge(self._readiness, answer.status) is ProbeResult.READY
            return Vitality.WELL if well else Vitality.ILL
        return answer.none

    def canary(self, bound: float) -> Vitality:
        """Whether it still computes: request one token."""
        health = self._ask("GET", self._readiness.path, None, PROBE_SECONDS)
        if health.status is not None and judge(self._readiness, health.status) is ProbeResult.DEAD:
            return Vitality.ILL
        path, body = _SMALLEST[self._mode]
        answer = self._ask("POST", path, {"model": self._model_name, **body}, bound)
        if answer.status is not None:
            # A refusal may be due to our request, and shows that it works.
            return Vitality.WELL if answer.status < 500 else Vitality.ILL
        return answer.none

    def counters(self, bound: float) -> bytes | None:
        """The engine's own counters; None if it has or sends none."""
        told = b""
        for path in self._readiness.counters:
            answer = self._ask("GET", path, None, bound)
            if answer.status == 200:
                told += answer.body
        return told or None

    def _prove(self) -> ProbeResult:
        bound = PROOF_SECONDS[min(self._proofs, len(PROOF_SECONDS) - 1)]
        self._proofs += 1
        status = self._compute(bound)
        return ProbeResult.READY if status is not None and 200 <= status < 300 else ProbeResult.LOADING

    def _compute(self, bound: float) -> int | None:
        path, body = _SMALLEST[self._mode]
        return self._request("POST", path, {"model": self._model_name, **body}, bound)

    def _request(self, method: str, path: str, body: dict[str, object] | None, bound: float) -> int | None:
        return self._ask(method, path, body, bound).status

    def _ask(self, method: str, path: str, body: dict[str, object] | None, bound: float) -> _Answer:
        connection = EngineConnection(self._endpoint, bound, self._leader)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"} if payload else {})
            response = connection.getresponse()
            return _Answer(response.status, body=response.read(_ANSWER_LIMIT))
        except OSError as problem:
            return _Answer(None, unasked=problem.errno in _OURS)
        except (http.client.HTTPException, ValueError):
            return _Answer(None, garbled=True)
        finally:
            connection.close()


_ANSWER_LIMIT = 1024 * 1024
"""Maximum bytes to read of a response."""


class Vitality(Enum):
    """How an engine that was ready reacts to a request."""

    WELL = "well"
    ILL = "ill"
    """It reports a problem."""
    GARBLED = "garbled"
    """Its responses are not HTTP."""
    SILENT = "silent"
    UNASKED = "unasked"
    """We had no descriptor or memory to send with, which says nothing about the engine."""


_OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))


@dataclass(frozen=True)
class _Answer:
    status: int | None
    """None if there was none in time."""
    body: bytes = b""
    garbled: bool = False
    unasked: bool = False
    """We could not even send it."""

    @property
    def none(self) -> Vitality:
        if self.unasked:
            return Vitality.UNASKED
        return Vitality.GARBLED if self.garbled else Vitality.SILENT
