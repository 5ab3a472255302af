"""What a runner stores, in `runner/<backend>`. A change of a field needs a new SCHEMA and an upcaster."""

from __future__ import annotations

from greenroom.actors.kernel.core import Event
from greenroom.actors.values import EngineExit, EngineSpec, Failure


class EngineStartRequested(Event, frozen=True, kw_only=True):
    """The intent to start an engine; recovery settles it by looking, never by repeating."""

    TAG = "engine_start_requested"
    spec: EngineSpec


class EngineSpawned(Event, frozen=True, kw_only=True):
    """Its process runs."""

    TAG = "engine_spawned"
    engine_id: str
    pid: int
    started: float
    endpoint: str


class EngineReady(Event, frozen=True, kw_only=True):
    """It has proved that it can answer."""

    TAG = "engine_ready"
    engine_id: str
    seconds: float = 0.0
    """From the request to start it."""


class EngineStopRequested(Event, frozen=True, kw_only=True):
    """It was asked to end."""

    TAG = "engine_stop_requested"
    URGENT = True
    engine_id: str
    reason: str
    fault: bool = False
    """True when its runner gives it up, False when it is no longer needed."""
    failure: Failure | None = None
    """Why it is given up, with kind, code and blame."""


class EngineExited(Event, frozen=True, kw_only=True):
    """Its process has ended."""

    TAG = "engine_exited"
    URGENT = True
    engine_id: str
    exit: EngineExit


class EngineAdopted(Event, frozen=True, kw_only=True):
    """It outlived the daemon that started it and is ours again."""

    TAG = "engine_adopted"
    engine_id: str
    pid: int
    started: float
    endpoint: str
    ready: bool = True
    """Whether it answered when it was looked at; the journal's claim counts for nothing."""


class EngineLost(Event, frozen=True, kw_only=True):
    """The journal says it runs, or shall; nothing on this machine does, and it never will again."""

    TAG = "engine_lost"
    URGENT = True
    engine_id: str
    reason: str
