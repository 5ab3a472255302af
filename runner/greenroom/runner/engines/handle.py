"""What the host knows of one engine, and the order in which its listener hears about it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import msgspec

from greenroom.actors.values import EngineExit, EngineSpec, Failure, Measured
from greenroom.runner.backends.base import Command, Readiness
from greenroom.runner.engines.channel import Channel
from greenroom.runner.engines.paths import EngineFolder
from greenroom.runner.engines.reach import inode_of
from greenroom.runner.engines.readiness import Probe

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """One engine's program and how to tell that it is ready."""

    command: Command
    readiness: Readiness
    model_name: str = ""
    """What the one-token proof sends as `model`: the dialect's name, or the model's own."""
    version: str = ""
    """Version of the installation, for the capsule."""


Prepare = Callable[[EngineSpec, Path], Prepared]


Ladder = Sequence[tuple[str, float]]
"""Signals, each with the seconds until the next."""


class EngineListener(Protocol):
    """Hears what happens to engines; called from threads of the host, one engine's calls in order."""

    def spawned(self, engine_id: str, pid: int, started: float, endpoint: str) -> None:
        """The process runs; `endpoint` is the absolute path of its unix socket."""

    def progress(self, engine_id: str, phase: str, message: str) -> None:
        """Still loading; at most about once a second. Never to be stored."""

    def ready(self, engine_id: str) -> None:
        """It answers."""

    def failed(self, engine_id: str, failure: Failure) -> None:
        """It could not even be spawned."""

    def exited(self, engine_id: str, exit: EngineExit) -> None:  # noqa: A002
        """It has ended and is reaped."""

    def adopted(self, engine_id: str, pid: int, started: float, endpoint: str, ready: bool) -> None:
        """An earlier daemon's engine was identified; when not yet ready, `ready` or an end follows."""

    def lost(self, engine_id: str, reason: str) -> None:
        """There is no such engine any more, or what was there could not be trusted and was ended."""

    def stalled(self, engine_id: str, failure: Failure) -> None:
        """It cannot be reached, was stopped, or does nothing any more. It is not ended for that: whoever
        hears it decides."""

    def measured(self, measured: Mapping[str, Measured]) -> None:
        """The memory of engines has changed. Never to be stored."""


_TOLD_AGAIN = 5.0
"""Seconds after which it is told again that an engine should be replaced, should nothing have come of it."""
_BATCH_OPTIONS = ("--batch-size", "-b")


def batch_of(argv: Sequence[str]) -> int:
    """Tokens of a prompt that a command line lets an engine compute at once; 0 when it does not say."""
    given = [after for word, after in pairwise(argv) if word in _BATCH_OPTIONS]
    return int(given[-1]) if given and given[-1].isdigit() else 0


class Handle:
    """One engine. Its lock orders what the listener hears: after an end comes nothing."""

    def __init__(self, spec: EngineSpec, folder: EngineFolder, listener: EngineListener) -> None:
        self.spec = spec
        self.folder = folder
        self._listener = listener
        self._lock = threading.RLock()
        self.channel: Channel | None = None
        self.spawned = threading.Event()
        """The process runs, or will not any more."""
        self.over = threading.Event()
        self.pid = 0
        self.started = 0.0
        self.endpoint = Path()
        self.readiness = Readiness()
        self.model_name = ""
        self.batch = 0
        """Tokens of a prompt it computes at once at most; 0 when its command line does not say."""
        self.inode = 0
        """Of its socket when it was seen to answer."""
        self.halted_at = 0.0
        """Monotonic second at which its keeper saw it stopped by a signal; 0 while it runs."""
        self.given_up_at = 0.0
        """Monotonic second at which the listener was last told that it should be replaced; 0 for never."""
        self.may_finish = False
        """Those inside are still answered, though nobody else can reach it: its end waits for them."""
        self.was_ready = False
        self.served = False
        """Clients may have been inside, also in an earlier life: what it prints may be their words."""
        self.answers = False
        """It was seen to answer in this life of the host."""
        self.stop_requested = False
        self.stop_sent = False
        self.stop_reason = ""
        """What whoever asked gave as the reason."""
        self.fault = ""
        """Why the host ends it on its own; makes the exit an unexpected one."""
        self.ladder: Ladder | None = None
        """How it is to be ended; None is the host's own way."""
        self.distrust = ""
        """Why it is ended instead of adopted; its end is then a loss."""
        self.kill_at = 0.0
        """Monotonic time after which the host no longer waits for the keeper; 0 when not stopping."""

    @property
    def engine_id(self) -> str:
        """Its id."""
        return self.spec.engine_id

    @property
    def serves(self) -> bool:
        """It answers, and nobody has asked it to end."""
        return self.answers and self.wanted

    @property
    def wanted(self) -> bool:
        """Nobody has asked it to end, and it has not."""
        return not (self.stop_requested or self.fault or self.over.is_set())

    def probe(self) -> Probe:
        """To ask it whether it is ready, or still works."""
        return Probe(
            self.endpoint,
            self.readiness,
            model_name=self.model_name,
            leader=self.pid,
            mode=self.spec.mode,
        )

    def about(self, prepared: Prepared) -> dict[str, Any]:
        """What the claim remembers, so that the next daemon can adopt without asking anybody."""
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
        """The opposite of `about`; raises KeyError or TypeError when it is not one."""
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

    # -- what the listener hears -------------------------------------------------------------------

    def tell_spawned(self) -> None:
        """The process runs."""
        self._tell(lambda: self._listener.spawned(self.engine_id, self.pid, self.started, str(self.endpoint)))
        self.spawned.set()

    def tell_progress(self, phase: str, message: str) -> None:
        """It moves."""
        self._tell(lambda: self._listener.progress(self.engine_id, phase, message))

    def tell_ready(self) -> None:
        """It answers."""
        with self._lock:
            if self.stop_requested or self.fault:
                return
            self.was_ready = self.answers = self.served = True
            self.inode = inode_of(self.endpoint)
            self._tell(lambda: self._listener.ready(self.engine_id))

    def tell_adopted(self, ready: bool) -> None:
        """It was identified."""
        self.was_ready = self.was_ready or ready
        self.answers = ready
        if ready:
            self.inode = inode_of(self.endpoint)
        endpoint = str(self.endpoint)
        self._tell(lambda: self._listener.adopted(self.engine_id, self.pid, self.started, endpoint, ready))

    def tell_kept(self) -> None:
        """It never was away; whoever asks has lost what he knew of it."""
        with self._lock:
            self.given_up_at = 0.0
            if self.pid:
                self.tell_adopted(self.answers)
            else:
                self.tell_progress("starting", "")

    def tell_stalled(self, failure: Failure, ladder: Ladder, *, may_finish: bool = False) -> None:
        """It cannot be reached, was stopped, or does nothing any more. When it is ended for that, this ladder
        is climbed, for what does not run obeys no polite signal; `may_finish` lets those inside finish first.
        """
        now = time.monotonic()
        with self._lock:
            if not self.wanted or (self.given_up_at and now - self.given_up_at < _TOLD_AGAIN):
                return
            self.given_up_at, self.ladder, self.may_finish = now, ladder, may_finish
            self._tell(lambda: self._listener.stalled(self.engine_id, failure))

    def tell_failed(self, failure: Failure) -> None:
        """It could not be spawned: an end."""
        self._end(lambda: self._listener.failed(self.engine_id, failure))

    def tell_exited(self, end: EngineExit) -> None:
        """It has ended."""
        self._end(lambda: self._listener.exited(self.engine_id, end))

    def tell_lost(self, reason: str) -> None:
        """It is not there, or not what it should be: an end."""
        self._end(lambda: self._listener.lost(self.engine_id, reason))

    def silence(self) -> None:
        """Nothing more is told: the host leaves the engine to the next daemon."""
        self._end(lambda: None)

    def _end(self, tell: Callable[[], None]) -> None:
        with self._lock:
            if self.over.is_set():
                return
            self._tell(tell)
            self.over.set()
            self.spawned.set()

    def _tell(self, tell: Callable[[], None]) -> None:
        with self._lock:
            if self.over.is_set():
                return
            try:
                tell()
            except Exception:  # noqa: BLE001 - see below
                # The host must go on keeping the engine, whatever its listener does.
                _log.exception("engine %s: the listener failed", self.engine_id)
