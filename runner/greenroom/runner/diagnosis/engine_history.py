"""One engine from the decision to start it to its end, put together from its events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from greenroom.actors.engine_runner.events import (
    EngineAdopted,
    EngineExited,
    EngineLoaded,
    EngineLost,
    EngineReady,
    EngineSpawned,
    EngineStartRequested,
    EngineStopRequested,
)
from greenroom.actors.scheduler.events import BackendChosen, EvictionDecided, LoadAdmitted, LoadFailed
from greenroom.actors.values import EngineExit, EngineSpec
from greenroom.runner.diagnosis.configured import changes
from greenroom.runner.diagnosis.history import Happening, History


class EngineHistory(msgspec.Struct, kw_only=True):
    """One engine. What is None has not happened, or was not stored."""

    engine_id: str
    happenings: list[Happening] = []
    """All of its events, and the choice of its backend, in order."""
    spec: EngineSpec | None = None
    chosen: BackendChosen | None = None
    admitted: LoadAdmitted | None = None
    admitted_at: float = 0.0
    requested_at: float = 0.0
    spawned: EngineSpawned | None = None
    spawned_at: float = 0.0
    loaded: EngineLoaded | None = None
    ready: EngineReady | None = None
    ready_at: float = 0.0
    adopted_at: float = 0.0
    """When the latest daemon re-adopted it; 0 while the daemon that started it runs."""
    evicted: EvictionDecided | None = None
    evicted_at: float = 0.0
    evicted_by: str = ""
    """The cause of that."""
    stop: EngineStopRequested | None = None
    failed: LoadFailed | None = None
    failed_at: float = 0.0
    exit: EngineExit | None = None
    lost: EngineLost | None = None
    ended_at: float = 0.0

    @property
    def began(self) -> float:
        """When it was decided on, or first mentioned."""
        return self.admitted_at or self.requested_at or (self.happenings[0].at if self.happenings else 0.0)

    @property
    def state(self) -> str:
        """`waiting`, `starting`, `loading`, `ready`, `stopping`, `gone`."""
        if self.ended_at:
            return "gone"
        if self.stop is not None:
            return "stopping"
        if self.ready is not None:
            return "ready"
        if self.spawned is not None:
            return "loading"
        return "starting" if self.requested_at else "waiting"

    @property
    def words(self) -> tuple[str, ...]:
        """Its last lines of output, or its first ones when there were no others."""
        if self.exit is not None and (self.exit.last_lines or self.exit.first_lines):
            return self.exit.last_lines or self.exit.first_lines
        detail = self.failed.failure.detail if self.failed is not None else ""
        return tuple(detail.splitlines())

    @property
    def caused_by(self) -> str:
        """The request that it was started for, or what else led to it."""
        admitted = next((one for one in self.happenings if isinstance(one.event, LoadAdmitted)), None)
        return admitted.record.cause if admitted is not None else ""

    def wanted_by(self, name: str, history: History) -> tuple[str, str]:
        """What it was started for: in a word, and as the end of `because …`; `name` is the model's."""
        cause = self.caused_by
        if cause.startswith("warm-"):
            return "warm", f"{name} is preloaded, as configured"
        if cause.startswith("moved-"):
            return "moved", f"{name} was loaded again once it was idle, since devices had room for more of it"
        if cause.startswith("restore-"):
            return "restored", f"{name} was loaded when the previous daemon ended"
        who = history.who(cause, self.admitted.caller if self.admitted is not None else None)
        mine = self.spec and [
            one
            for one in changes(history, self.spec.model_id, self.spec.mode)
            if one.happening.record.cause == cause
        ]
        if who and mine:
            return "configured", f"{who} configured {name} with {mine[-1].told()}"
        return "asked_for", f"{who} needed {name}" if who else f"{name} was requested"

    def add(self, happening: Happening) -> None:
        self.happenings.append(happening)
        match happening.event:
            case LoadAdmitted() as e:
                self.admitted, self.admitted_at, self.spec = e, happening.at, e.spec
            case EngineStartRequested() as e:
                self.requested_at, self.spec = happening.at, self.spec or e.spec
            case EngineSpawned() as e:
                self.spawned, self.spawned_at = e, happening.at
            case EngineLoaded() as e:
                self.loaded = e
            case EngineReady() as e:
                self.ready, self.ready_at = e, happening.at
            case EngineAdopted():
                self.adopted_at = happening.at
            case EvictionDecided() as e:
                self.evicted, self.evicted_at = e, happening.at
                self.evicted_by = happening.record.cause
            case EngineStopRequested() as e:
                self.stop = e
            case LoadFailed() as e:
                self.failed, self.failed_at = e, happening.at
            case EngineExited() as e:
                self.exit, self.ended_at = e.exit, happening.at
            case EngineLost() as e:
                self.lost, self.ended_at = e, happening.at
            case _:
                pass


def engines_in(happenings: Iterable[Happening]) -> list[EngineHistory]:
    """Every engine in these events, the oldest first."""
    engines: dict[str, EngineHistory] = {}
    chosen: Happening | None = None
    for one in happenings:
        if isinstance(one.event, BackendChosen):
            chosen = one
        if not one.about.engine:
            continue
        engine = engines.setdefault(one.about.engine, EngineHistory(engine_id=one.about.engine))
        if isinstance(one.event, LoadAdmitted) and chosen is not None:
            # They are stored together, the choice first.
            engine.chosen = chosen.event if isinstance(chosen.event, BackendChosen) else None
            engine.happenings.append(chosen)
            chosen = None
        engine.add(one)
    return list(engines.values())


def usual_seconds(engines: Sequence[EngineHistory], spec: EngineSpec) -> list[float]:
    """How long earlier loads of the same model in the same way took on the same installation."""
    return [
        one.ready.seconds
        for one in engines
        if one.ready is not None
        and one.ready.seconds > 0
        and one.spec is not None
        and one.engine_id != spec.engine_id
        and (one.spec.backend, one.spec.installation_id, one.spec.mode)
        == (spec.backend, spec.installation_id, spec.mode)
    ]
