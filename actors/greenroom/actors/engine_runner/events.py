"""Events of a runner, in `runner/<backend>`. Changing a field needs a new SCHEMA and an upcaster."""

from __future__ import annotations

from greenroom.actors.kernel.core import Event
from greenroom.actors.values import EngineExit, EngineSpec, Failure, Loaded


class EngineStartRequested(Event, frozen=True, kw_only=True):
    """The intent to start an engine; recovery looks for its process and never repeats the start."""

    TAG = "engine_start_requested"
    spec: EngineSpec


class EngineSpawned(Event, frozen=True, kw_only=True):
    """An engine's process has started."""

    TAG = "engine_spawned"
    engine_id: str
    pid: int
    started: float
    endpoint: str


class EngineLoaded(Event, frozen=True, kw_only=True):
    """An engine has reported how much of its model is on devices."""

    TAG = "engine_loaded"
    engine_id: str
    loaded: Loaded
    planned: int
    """Layers that should lie there."""


class EngineReady(Event, frozen=True, kw_only=True):
    """An engine has shown that it can answer."""

    TAG = "engine_ready"
    engine_id: str
    seconds: float = 0.0
    """From the request to start it."""


class EngineStopRequested(Event, frozen=True, kw_only=True):
    """An engine was asked to end."""

    TAG = "engine_stop_requested"
    URGENT = True
    engine_id: str
    reason: str
    fault: bool = False
    """True if its runner gives it up, False if it is no longer needed."""
    failure: Failure | None = None
    """Why it is given up, with kind, code and blame."""

    @property
    def is_problem(self) -> bool:
        return self.fault


class EngineExited(Event, frozen=True, kw_only=True):
    """An engine's process has ended."""

    TAG = "engine_exited"
    URGENT = True
    engine_id: str
    exit: EngineExit

    @property
    def is_problem(self) -> bool:
        return not self.exit.expected


class EngineAdopted(Event, frozen=True, kw_only=True):
    """An engine outlived the daemon that started it and was adopted by this one."""

    TAG = "engine_adopted"
    engine_id: str
    pid: int
    started: float
    endpoint: str
    ready: bool = True
    """Whether it answered at recovery, whatever the journal says."""


class EngineLost(Event, frozen=True, kw_only=True):
    """The journal says that an engine runs or will start, but it does not run and never will."""

    TAG = "engine_lost"
    PROBLEM = True
    URGENT = True
    engine_id: str
    reason: str
