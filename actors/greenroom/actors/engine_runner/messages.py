"""What runners are told, and what the engine host reports beside events (see `actors.reports`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from greenroom.actors.kernel.core import Address, Command
from greenroom.actors.limits import BackendName, Id, Ids, Many, Reason, Whole
from greenroom.actors.values import Engine, EngineSpec, Failure, Measured


def runner_address(backend: str) -> Address:
    """Where the runner of a backend is."""
    return Address(f"runner/{backend}")


class StartEngine(Command[None], frozen=True, kw_only=True):
    """Scheduler → runner. The same id twice is harmless."""

    spec: EngineSpec

    @property
    def actor(self) -> Address:
        return runner_address(self.spec.backend)


class StopEngine(Command[None], frozen=True, kw_only=True):
    """Scheduler → runner. Harmless for an engine that is gone."""

    backend: BackendName
    engine_id: Id
    reason: Reason

    @property
    def actor(self) -> Address:
        return runner_address(self.backend)


class ForbidStart(Command[None], frozen=True, kw_only=True):
    """Scheduler → runner. An engine that is not known shall never start; one that is known is left alone.

    Either way the runner's list says which it was.
    """

    backend: BackendName
    engine_id: Id

    @property
    def actor(self) -> Address:
        return runner_address(self.backend)


class EngineMoved(Command[None], frozen=True, kw_only=True):
    """Report: it is loading and getting on."""

    engine_id: Id


class EngineStalled(Command[None], frozen=True, kw_only=True):
    """Report: it cannot be reached, was stopped, or does nothing any more; it shall be ended and replaced."""

    engine_id: Id
    failure: Failure


class EngineMeasured(Command[None], frozen=True, kw_only=True):
    """Report: the memory of an engine. Never stored."""

    engine_id: Id
    size: Measured


class EngineList(Command[None], frozen=True, kw_only=True):
    """Runner → scheduler and installer: all its engines, and the last that are gone."""

    backend: BackendName
    engines: Annotated[tuple[Engine, ...], Many]
    forbidden: Ids = ()
    """Engines that never will start, even if their start is still on its way."""
    version: Whole
    installations: Whole = -1
    """Version of the installer's list that the scheduler had acted on when it last requested this list."""
    token: Id = ""
    """Of the last request that had one; all that was sent before that request shows in this list."""
    measured: Annotated[Mapping[Id, Measured], Many] = {}
    """engine → memory, as far as it could be measured."""
