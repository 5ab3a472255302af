"""Starts, watches, stops, adopts and settles engine processes, each under a keeper of its own.

The public surface, all of it non-blocking unless it says otherwise, callable from any thread::

    host = EngineHost(home / "engines", prepare=prepare, listener=listener, grace=120.0)
    host.start(spec)                      # -> failed | spawned, progress*, ready -> exited | lost
    host.stop(engine_id, reason="")       # -> exited (expected) | lost
    host.recover(expected).result()       # -> for each engine: adopted (then ready) | exited | lost
    host.sweep(known_ids).result()        # ends and removes what nobody knows
    host.shutdown(keep=None)              # blocks, bounded: stops all; keep=seconds leaves them running

`prepare(spec, socket)` runs on a thread of the host, may read the disk, and raises `JobFailed` when the
engine cannot be started at all. The listener is called from threads of the host; it must only hand on
(tell an actor) and return. For every `start` exactly one of `failed`, `exited` and `lost` comes, and
nothing after it; `stop` of an engine the host does not know answers `lost`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from greenroom.actors.facts import Engine, EngineExit, EngineSpec, Failure
from greenroom.runner.backends.declaration import Command, Readiness


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


class EngineHost:
    """All engines of one data directory."""

    def __init__(
        self,
        engines_dir: Path,
        *,
        prepare: Prepare,
        listener: EngineListener,
        grace: float = 120.0,
        spare_keeper: bool = True,
    ) -> None: ...

    def start(self, spec: EngineSpec) -> None:
        """Start one engine."""

    def stop(self, engine_id: str, *, reason: str = "") -> None:
        """SIGINT, SIGTERM, SIGKILL for the whole process group, with bounds."""

    def recover(self, expected: Sequence[Engine]) -> Future[None]:
        """Settle what the journal claims: adopt what can be identified, end the rest."""
        raise NotImplementedError

    def sweep(self, known_ids: Collection[str]) -> Future[list[str]]:
        """End engines nobody knows; remove old folders of ended ones."""
        raise NotImplementedError

    def shutdown(self, *, keep: float | None = None) -> None:
        """Stop all in parallel, bounded; or leave them for `keep` seconds (`math.inf`: for ever)."""
