"""Whether an engine is loading, ready or dead; and requests to it over its socket."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from greenroom.actors.values import Mode
from greenroom.runner.backends.base import Readiness
from greenroom.runner.systems import here

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
        connection = _UnixConnection(self._endpoint, bound, self._leader)
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


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket, after checking who listens there."""

    def __init__(self, endpoint: str, bound: float, leader: int) -> None:
        super().__init__("localhost", timeout=bound)
        self._endpoint = endpoint
        self._leader = leader

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._endpoint)
        if self._leader and not belongs_to(here.peer_pid(self.sock), self._leader):
            raise ConnectionRefusedError("another process listens on the socket")


def belongs_to(pid: int, leader: int) -> bool:
    """Whether a process is the leader or in its group (or unknown)."""
    if pid in (0, leader):
        return True
    try:
        return os.getpgid(pid) == leader
    except OSError:
        return False
