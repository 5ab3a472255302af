"""Commands of the runners, and the engine host's reports that are not events (see `actors.reports`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from greenroom.actors.kernel.core import Address, Command
from greenroom.actors.limits import BackendName, Id, Ids, Many, Reason, Whole
from greenroom.actors.values import Engine, EngineSpec, Failure, Measured


def runner_address(backend: str) -> Address:
    return Address(f"runner/{backend}")


class StartEngine(Command[None], frozen=True, kw_only=True):
    """Scheduler → runner. The same id twice is harmless."""

    spec: EngineSpec

    @property
    def actor(self) -> Address:
        return runner_address(self.spec.backend)


class StopEngine(Command[None], frozen=True, kw_only=True):
    """Scheduler → runner. Harmless if the engine has ended."""

    backend: BackendName
    engine_id: Id
    reason: Reason

    @property
    def actor(self) -> Address:
        return runner_address(self.backend)


class ForbidStart(Command[None], frozen=True, kw_only=True):
    """Scheduler → runner. An unknown engine must never start; a known one is left alone.

    The runner's list shows which it was.
    """

    backend: BackendName
    engine_id: Id

    @property
    def actor(self) -> Address:
        return runner_address(self.backend)


class EngineMoved(Command[None], frozen=True, kw_only=True):
    """Report: it is loading and making progress."""

    engine_id: Id


class EngineStalled(Command[None], frozen=True, kw_only=True):
    """Report: it cannot be reached, was suspended, or hangs; it must be ended and replaced."""

    engine_id: Id
    failure: Failure


class EngineMeasured(Command[None], frozen=True, kw_only=True):
    """Report: the memory of an engine. Never stored."""

    engine_id: Id
    size: Measured


class EngineList(Command[None], frozen=True, kw_only=True):
    """Runner → scheduler and installer: all its engines, including the last that ended."""

    backend: BackendName
    engines: Annotated[tuple[Engine, ...], Many]
    forbidden: Ids = ()
    """Engines that must never start, even if their start is still to arrive."""
    version: Whole
    installations: Whole = -1
    """Version of the installer's list that the scheduler had acted on when it last requested this list."""
    token: Id = ""
    """Of the last request that had one; this list reflects all commands sent before that request."""
    measured: Annotated[Mapping[Id, Measured], Many] = {}
    """engine → memory, where measured."""
