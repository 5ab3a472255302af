"""The host's view of one engine, and the order of its reports to the runner."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from greenroom.actors.values import EngineExit, EngineSpec, Failure, Loaded, Measured, Progress
from greenroom.runner.backends.base import CommandLine, Readiness
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.engines.keeper_watch import Channel
from greenroom.runner.engines.reachability import inode_of
from greenroom.runner.engines.readiness import Probe
from greenroom.runner.errors import blamed

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
            self.endpoint,
            self.readiness,
            model_name=self.model_name,
            leader=self.pid,
            mode=self.spec.mode,
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
