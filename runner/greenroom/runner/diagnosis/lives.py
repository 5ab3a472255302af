"""One engine from the decision to start it to its end, put together from its events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from greenroom.actors.engine_runner.events import (
    EngineAdopted,
    EngineExited,
    EngineLost,
    EngineReady,
    EngineSpawned,
    EngineStartRequested,
    EngineStopRequested,
)
from greenroom.actors.scheduler.events import (
    BackendChosen,
    BreakerOpened,
    EvictionDecided,
    LoadAdmitted,
    LoadFailed,
)
from greenroom.actors.values import EngineExit, EngineSpec
from greenroom.runner.diagnosis.history import Happening


class Life(msgspec.Struct, kw_only=True):
    """What the journal says of one engine. What is None has not happened, or was not stored."""

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
    ready: EngineReady | None = None
    ready_at: float = 0.0
    adopted_at: float = 0.0
    """When the latest daemon took it over; 0 when it is still the one that started it."""
    evicted: EvictionDecided | None = None
    evicted_at: float = 0.0
    stop: EngineStopRequested | None = None
    failed: LoadFailed | None = None
    failed_at: float = 0.0
    breaker: BreakerOpened | None = None
    exit: EngineExit | None = None
    lost: EngineLost | None = None
    ended_at: float = 0.0

    @property
    def began(self) -> float:
        """When it was decided on, or first heard of."""
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
        """Its last words, or its first ones when it had no others."""
        if self.exit is not None and (self.exit.last_lines or self.exit.first_lines):
            return self.exit.last_lines or self.exit.first_lines
        detail = self.failed.failure.detail if self.failed is not None else ""
        return tuple(detail.splitlines())

    def add(self, happening: Happening) -> None:
        """Take in its next event."""
        self.happenings.append(happening)
        match happening.event:
            case LoadAdmitted() as e:
                self.admitted, self.admitted_at, self.spec = e, happening.at, e.spec
            case EngineStartRequested() as e:
                self.requested_at, self.spec = happening.at, self.spec or e.spec
            case EngineSpawned() as e:
                self.spawned, self.spawned_at = e, happening.at
            case EngineReady() as e:
                self.ready, self.ready_at = e, happening.at
            case EngineAdopted():
                self.adopted_at = happening.at
            case EvictionDecided() as e:
                self.evicted, self.evicted_at = e, happening.at
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


def lives_in(happenings: Iterable[Happening]) -> list[Life]:
    """Every engine in these events, the oldest first."""
    lives: dict[str, Life] = {}
    chosen: Happening | None = None
    last: Life | None = None
    for one in happenings:
        if isinstance(one.event, BackendChosen):
            chosen = one
        elif isinstance(one.event, BreakerOpened) and last is not None:
            last.breaker = one.event
        if not one.about.engine:
            continue
        life = lives.setdefault(one.about.engine, Life(engine_id=one.about.engine))
        if isinstance(one.event, LoadAdmitted) and chosen is not None:
            # They are stored together, the choice first.
            life.chosen = chosen.event if isinstance(chosen.event, BackendChosen) else None
            life.happenings.append(chosen)
            chosen = None
        life.add(one)
        if isinstance(one.event, LoadFailed):
            last = life
    return list(lives.values())


def usual_seconds(lives: Sequence[Life], spec: EngineSpec) -> list[float]:
    """How long earlier loads of the same model in the same way took on the same installation."""
    return [
        one.ready.seconds
        for one in lives
        if one.ready is not None
        and one.ready.seconds > 0
        and one.spec is not None
        and one.engine_id != spec.engine_id
        and (one.spec.backend, one.spec.installation_id, one.spec.mode)
        == (spec.backend, spec.installation_id, spec.mode)
    ]
