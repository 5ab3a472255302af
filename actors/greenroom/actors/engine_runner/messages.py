"""What runners are told, and what the engine host reports beside events (see `actors.reports`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from greenroom.actors.kernel.core import Command
from greenroom.actors.limits import (
    BackendName,
    Id,
    Ids,
    Many,
    Reason,
    Whole,
)
from greenroom.actors.values import (
    Engine,
    EngineSpec,
    Failure,
    Measured,
)


class StartEngine(Command, frozen=True, kw_only=True):
    """Scheduler → runner. The same id twice is harmless."""

    spec: EngineSpec


class StopEngine(Command, frozen=True, kw_only=True):
    """Scheduler → runner. Harmless for an engine that is gone."""

    engine_id: Id
    reason: Reason


class ForbidStart(Command, frozen=True, kw_only=True):
    """Scheduler → runner. An engine that is not known shall never start; one that is known is left alone.

    Either way the runner's list says which it was.
    """

    engine_id: Id


class EngineMoved(Command, frozen=True, kw_only=True):
    """Report: it is loading and getting on."""

    engine_id: Id


class EngineStalled(Command, frozen=True, kw_only=True):
    """Report: it cannot be reached, was stopped, or does nothing any more; it shall be ended and replaced."""

    engine_id: Id
    failure: Failure


class EngineMeasured(Command, frozen=True, kw_only=True):
    """Report: the memory of an engine. Never stored."""

    engine_id: Id
    size: Measured


class EngineList(Command, frozen=True, kw_only=True):
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
