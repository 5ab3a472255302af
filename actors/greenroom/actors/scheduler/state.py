"""The scheduler's durable state, folded from its events, and its volatile state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from greenroom.actors.bounded_maps import remembered, without
from greenroom.actors.gates import GateReading
from greenroom.actors.installer.messages import BackendStatus
from greenroom.actors.kernel.core import Stored
from greenroom.actors.limits import CONTEXT, DURATION, flags_complaint
from greenroom.actors.scheduler.events import (
    BreakerClosed,
    BreakerOpened,
    ConfigChanged,
    EvictionDecided,
    KeepAliveWished,
    LoadAdmitted,
    LoadFailed,
    LoadRefused,
    ModelQuarantined,
    QuarantineLifted,
)
from greenroom.actors.scheduler.ledger import Memory
from greenroom.actors.values import Caller, Engine, EngineSpec, Failure, InstallPolicy, Measured, Mode, Model

T = TypeVar("T")

_ENDED_REMEMBERED = 32
_FOOTPRINTS_REMEMBERED = 256
_INTERRUPTED_REMEMBERED = 64
_PROVEN_REMEMBERED = 256
_VERSIONS_REMEMBERED = 3
_QUARANTINES_REMEMBERED = 64
_REFUSALS_REMEMBERED = 256

FORGIVEN_AFTER = 1800.0
"""Seconds after which an earlier failure no longer counts for a new load."""
NOT_THE_MODELS_FAULT = frozenset(
    {
        *("engine_lost", "engine_ended", "daemon_restarted", "engine_halted", "engine_unreachable"),
        "engine_abandoned",
    }
)
"""Failure codes that say nothing about the model: requests that waited for the load get another engine."""
OVER_MEMORY = "engine_over_memory"
"""Failure code of an engine that took far more of the machine's memory than was reserved for it."""
NO_DEVICE_MEMORY = "no_device_memory"
"""Failure code of an engine that did not get memory of its device while it loaded."""
MOVED = "moved"
"""Reason of an eviction after which the model is loaded again, since more of it would lie on devices."""
NO_MEMORY_STEP = 512 * 2**20
"""Bytes of each device that are left free after that, doubled with each further failure."""
_COUNTED = frozenset({"", "engine", "model"})
"""Blame that counts against a model; events of older versions do not say, and counted."""


class LoadState(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that should run."""

    spec: EngineSpec
    admitted_at: float
    cause: str
    kept: bool = False
    """A request has pinned it."""
    wishes: int = 0
    """How often that has changed."""


class Interrupted(msgspec.Struct, frozen=True, kw_only=True):
    """A model that was loaded when the daemon ended, and has not been loaded since."""

    spec: EngineSpec
    """Of the engine it had."""
    at: float
    kept: bool


class ModelConfigState(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is loaded; what is None was never set."""

    context_size: int | None = None
    flags: tuple[str, ...] | None = None
    keep_alive: float | None = None
    slots: int | None = None
    """0 lets the ledger decide."""
    prompt_cache: int | None = None
    """Bytes; negative lets the ledger decide."""
    require_device: bool | None = None
    """Load it only if it lies on graphics devices as a whole."""


class BreakerState(msgspec.Struct, frozen=True, kw_only=True):
    """Recent failures of a model on an installation."""

    failures: int = 0
    """Loads that failed in a row, even if they answered first: one answer each proves nothing."""
    failed_at: float = 0.0
    """Wall clock second of the last of them."""
    until: float = 0.0
    """Wall clock second until which it is open; 0 while it is closed."""
    reason: str = ""


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """A model that an installation broke, and what serves it instead."""

    model_id: str
    model_ref: str
    backend: str
    installation_id: str
    """Where it fails."""
    version: str
    back_to: str
    back_to_version: str
    since: float
    failures: int
    reason: str


class SchedulerState(msgspec.Struct, frozen=True, kw_only=True):
    loads: Mapping[str, LoadState] = msgspec.field(default_factory=dict)
    """By engine id: every engine that should run. Any other engine is to end."""
    configs: Mapping[str, ModelConfigState] = msgspec.field(default_factory=dict)
    breakers: Mapping[str, BreakerState] = msgspec.field(default_factory=dict)
    refusals: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """model|mode → codes of the refusals stored since it was last loaded."""
    ended: Mapping[str, str] = msgspec.field(default_factory=dict)
    """engine → id of the event that ended it; the last ones only."""
    evicted: Mapping[str, tuple[str, str]] = msgspec.field(default_factory=dict)
    """engine → why it was evicted, and for which model; the last ones only."""
    footprints: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Measured bytes, by kind of engine; the last ones only."""
    interrupted: Mapping[str, Interrupted] = msgspec.field(default_factory=dict)
    """model|mode → engines that ended only because the daemon did; the last ones only."""
    proven: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """model|backend → installations on which it ran well, the latest last."""
    quarantines: Mapping[str, Quarantine] = msgspec.field(default_factory=dict)
    """By `breaker_key`: models that an older installation serves."""
    admitted: int = 0
    version: int = 0


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has no engine yet."""

    request_id: str
    model_id: str
    model_ref: str
    mode: Mode
    backend: str
    policy: InstallPolicy
    since: float
    """Monotonic."""
    caller: Caller = Caller()
    on_behalf: str = ""
    """The client's request, if this is a further attempt at it."""
    slots: int = 1
    """Slots it needs."""
    context_size: int = 0
    """Tokens that it may fill at least."""
    moved: float = 0.0
    """Monotonic second at which it last moved up in the queue; 0 before the first."""
    bereft: float = 0.0
    """Monotonic second at which the engine it was queued for was gone; 0 when none has been."""
    until: float = 0.0
    """Monotonic second at which it is refused if it is not served; 0 before it is decided on."""
    cause: str = ""
    follows: str = ""
    """The progress board's key of the job it waits for."""
    phase: str = ""
    said: str = ""
    """The progress message last shown."""
    place: int = 0
    """In the queue, as last shown; the first is 1."""
    token: str = ""
    """Of the `Ensure` it waits for."""
    job: str = ""
    """The installer's job that it waits for."""

    @property
    def is_preload(self) -> bool:
        """No client waits for it: Greenroom itself has the model loaded."""
        return self.caller.kind == "greenroom"

    @property
    def asked_by(self) -> str:
        """The request that what is done for it is caused by."""
        return self.on_behalf or self.request_id


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """An `Ensure` that the installer has not decided on yet."""

    token: str
    sent_at: float
    """Monotonic."""


class FailedInstalls(msgspec.Struct, frozen=True, kw_only=True):
    """Installations that requests waited for and that failed."""

    count: int
    last: str
    """The last job, or the token of an `Ensure` that led to none."""
    until: float
    """Monotonic second until which no request starts another job; a user still can."""


class Setback(msgspec.Struct, frozen=True, kw_only=True):
    """Loads that failed for a reason other than the model: a full disk, no file descriptor."""

    failure: Failure
    count: int
    """In a row."""
    pause: float
    """Seconds before it is retried: clients that keep asking must not fill the journal with loads."""
    at: float
    """Monotonic second of the last one."""


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """An idle engine of which more could lie on graphics devices."""

    since: float = 0.0
    """Monotonic second since which that is so; 0 if it is not."""
    looked_at: float = 0.0
    """Monotonic second of the last look."""


class SchedulerVolatile(msgspec.Struct, frozen=True, kw_only=True):
    """What others own, and the queue. Starts empty in every life and is collected again."""

    queue: tuple[Waiting, ...] = ()
    statuses: Mapping[str, BackendStatus] | None = None
    statuses_version: int = -1
    models: Mapping[str, Model] | None = None
    engines: Mapping[str, Mapping[str, Engine]] = msgspec.field(default_factory=dict)
    """backend → id → engine; a backend is absent until its runner has sent its list in this life."""
    life: str = ""
    """Token of this life's requests for lists: a list sent before them does not count."""
    requested_at: float = 0.0
    """Monotonic second at which missing lists were last requested."""
    forbidden: Mapping[str, frozenset[str]] = msgspec.field(default_factory=dict)
    """backend → engines that its runner will never start."""
    met: frozenset[str] = frozenset()
    """Engines that have been in a runner's list in this life."""
    measured: Mapping[str, Measured] = msgspec.field(default_factory=dict)
    """By engine id."""
    begun: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Engines admitted in this life → monotonic second."""
    gates: Mapping[str, GateReading] = msgspec.field(default_factory=dict)
    memory: Memory = Memory(budget=0, available=0)
    in_use: Mapping[str, str] = msgspec.field(default_factory=dict)
    """backend → the installation that was current when quarantines were last looked at."""
    wishes: Mapping[str, Wish] = msgspec.field(default_factory=dict)
    """By backend."""
    awaited_sent: tuple[frozenset[str], float] = (frozenset(), 0.0)
    """The backends in the last `PendingInstallRequests`, and its monotonic second."""
    heard: Mapping[str, str] = msgspec.field(default_factory=dict)
    """backend → token of the last `Ensure` that the installer has decided on."""
    failed_installs: Mapping[str, FailedInstalls] = msgspec.field(default_factory=dict)
    cooling: Mapping[str, float] = msgspec.field(default_factory=dict)
    """breaker@until → monotonic second until which it is open; immune to a wall clock that jumps."""
    served: Mapping[str, int] = msgspec.field(default_factory=dict)
    """caller, and each of its shares → its last turn, counted in grants; the last few only."""
    ready_since: Mapping[str, float] = msgspec.field(default_factory=dict)
    """engine → monotonic second at which it was first seen ready; immune to a wall clock that jumps."""
    acted_on: tuple[int, float] = (-1, 0.0)
    """Version of the installer's list that runners last learned was acted on, and when."""
    keep_alive: Mapping[str, float] = msgspec.field(default_factory=dict)
    """model|mode → seconds, from the last request."""
    kept_by: Mapping[str, str] = msgspec.field(default_factory=dict)
    """model|mode → that request; nothing where it was configured since."""
    leaving: Mapping[str, float] = msgspec.field(default_factory=dict)
    """engine → monotonic second since which it is ending."""
    stop_sent: Mapping[str, float] = msgspec.field(default_factory=dict)
    """engine → when `StopEngine` was last sent."""
    start_sent: Mapping[str, float] = msgspec.field(default_factory=dict)
    """engine → when `StartEngine` was last repeated."""
    forbid_sent: Mapping[str, float] = msgspec.field(default_factory=dict)
    """engine → when `ForbidStart` was last sent."""
    refused: Mapping[str, int] = msgspec.field(default_factory=dict)
    """model|mode → refusals since the last load."""
    setbacks: Mapping[str, Setback] = msgspec.field(default_factory=dict)
    """By `breaker_key`."""
    moves: Mapping[str, Move] = msgspec.field(default_factory=dict)
    """By engine id."""
    moved: Mapping[str, float] = msgspec.field(default_factory=dict)
    """model|mode → monotonic second at which it was last loaded again for a better place."""
    draining: bool = False

    def engine(self, engine_id: str) -> Engine | None:
        return next((one[engine_id] for one in self.engines.values() if engine_id in one), None)

    def alive(self) -> list[Engine]:
        return [e for one in self.engines.values() for e in one.values() if e.state != "gone"]


def pruned(state: SchedulerState, volatile: SchedulerVolatile) -> SchedulerVolatile:
    """Forget what belongs to engines that are gone, so that nothing grows over weeks."""
    loads = state.loads.keys()
    alive = {one.spec.engine_id for one in volatile.alive()}
    wanted = {config_key(load.spec.model_id, load.spec.mode) for load in state.loads.values()}
    wanted |= {config_key(one.model_id, one.mode) for one in volatile.queue}
    cooling = {f"{key}@{breaker.until}" for key, breaker in state.breakers.items()}
    return msgspec.structs.replace(
        volatile,
        met=volatile.met & loads,
        measured={one: size for one, size in volatile.measured.items() if one in alive or one in loads},
        begun={one: at for one, at in volatile.begun.items() if one in loads},
        start_sent={one: at for one, at in volatile.start_sent.items() if one in loads},
        leaving={one: at for one, at in volatile.leaving.items() if one in alive},
        forbid_sent={one: at for one, at in volatile.forbid_sent.items() if one in loads},
        moves={one: move for one, move in volatile.moves.items() if one in loads},
        stop_sent={one: at for one, at in volatile.stop_sent.items() if one in alive},
        # A request's keep-alive applies to the engine that served it, not to the next one.
        keep_alive={key: seconds for key, seconds in volatile.keep_alive.items() if key in wanted},
        kept_by={key: request for key, request in volatile.kept_by.items() if key in wanted},
        ready_since={one: at for one, at in volatile.ready_since.items() if one in loads},
        cooling={name: at for name, at in volatile.cooling.items() if name in cooling},
    )


def fits(spec: EngineSpec, waiting: Waiting) -> bool:
    same = spec.model_id == waiting.model_id and spec.mode == waiting.mode
    return same and waiting.backend in ("", spec.backend)


def config_key(model_id: str, mode: str) -> str:
    return f"{model_id}|{mode}"


def breaker_key(model_id: str, backend: str, installation_id: str) -> str:
    return f"{model_id}|{backend}|{installation_id}"


def breaker_of(spec: EngineSpec) -> str:
    return breaker_key(spec.model_id, spec.backend, spec.installation_id)


def proven_key(model_id: str, backend: str) -> str:
    return f"{model_id}|{backend}"


def footprint_key(spec: EngineSpec, *, on_device: bool = False) -> str:
    """Everything that decides how much memory an engine needs."""
    where = "device" if on_device else "beside a device" if spec.device else ""
    size = (f"slots={spec.slots}", f"prompts={spec.prompt_cache}") if spec.slots else ()
    words = (spec.model_id, spec.mode, spec.backend, str(spec.context_size), *size, *spec.flags)
    return "|".join((*words, where) if where else words)


def excess_key(spec: EngineSpec, *, on_device: bool) -> str:
    """For what engines hold beyond their parts, however many of their layers lie where."""
    where = "beyond its parts on a device" if on_device else "beyond its parts beside a device"
    return "|".join((spec.model_id, spec.mode, spec.backend, str(spec.context_size), *spec.flags, where))


def pause_left(before: Mapping[str, Setback], key: str, now: float) -> float:
    """Seconds until a load may be tried again; 0.0 when now."""
    one = before.get(key)
    return max(0.0, one.at + one.pause - now) if one is not None else 0.0


def counts_against_model(failure: Failure) -> bool:
    """Whether a load failed because of the engine or the model. Faults of the machine, the settings or
    Greenroom open no breaker and quarantine nothing."""
    return failure.code not in NOT_THE_MODELS_FAULT and failure.blame in _COUNTED


def failures_with(breaker: BreakerState, load: LoadState | None) -> int:
    """Failures in a row, this load's included; earlier ones may be too old to count."""
    begun = load.admitted_at if load is not None else breaker.failed_at
    return breaker.failures + 1 if begun - breaker.failed_at <= FORGIVEN_AFTER else 1


def apply(state: SchedulerState, stored: Stored[Any]) -> SchedulerState:
    new = msgspec.structs.replace(state, version=state.version + 1)
    change = msgspec.structs.replace
    match stored.event:
        case LoadAdmitted(spec=spec):
            load = LoadState(spec=spec, admitted_at=stored.at, cause=stored.id)
            return change(
                new,
                loads={**state.loads, spec.engine_id: load},
                refusals=without(state.refusals, config_key(spec.model_id, spec.mode)),
                interrupted=without(state.interrupted, config_key(spec.model_id, spec.mode)),
                admitted=state.admitted + 1,
            )
        case LoadRefused() as e:
            key = config_key(e.model_id, e.mode)
            codes = (*state.refusals.get(key, ()), e.code)
            return change(new, refusals=remembered(state.refusals, key, codes, _REFUSALS_REMEMBERED))
        case LoadFailed() | EvictionDecided() as e:
            new = change(
                new,
                loads=without(state.loads, e.engine_id),
                ended=remembered(state.ended, e.engine_id, stored.id, _ENDED_REMEMBERED),
                footprints=_apply_footprints(state, e),
            )
            if isinstance(e, EvictionDecided):
                why = e.reason, e.in_favour_of
                new = change(new, evicted=remembered(state.evicted, e.engine_id, why, _ENDED_REMEMBERED))
                # One that is moved is loaded again at once, also by the next daemon.
                by_daemon, ran_well = e.reason in ("shutdown", MOVED), bool(e.installation_id)
            elif counts_against_model(e.failure):
                key = breaker_key(e.model_id, e.backend, e.installation_id)
                old = state.breakers.get(key, BreakerState())
                failures = failures_with(old, state.loads.get(e.engine_id))
                breaker = change(old, failures=failures, failed_at=stored.at, reason=e.failure.message)
                return change(new, breakers={**state.breakers, key: breaker})
            else:
                by_daemon, ran_well = True, e.was_ready
            if ran_well:
                new = change(new, proven=_apply_proven(state, e))
            if by_daemon:
                new = change(new, interrupted=_apply_interrupted(state, e.engine_id, stored.at))
            return new
        case KeepAliveWished(engine_id=one) as e if one in state.loads:
            load = state.loads[one]
            load = change(load, kept=e.keep_alive < 0, wishes=load.wishes + 1)
            return change(new, loads={**state.loads, one: load})
        case BreakerOpened() as e:
            key = breaker_key(e.model_id, e.backend, e.installation_id)
            old = state.breakers.get(key, BreakerState())
            breaker = change(old, failures=e.failures, until=e.until, reason=e.reason)
            proven = _apply_unproven(state, e)
            return change(new, breakers={**state.breakers, key: breaker}, proven=proven)
        case BreakerClosed() as e:
            key = breaker_key(e.model_id, e.backend, e.installation_id)
            return change(new, breakers=without(state.breakers, key), proven=_apply_proven(state, e))
        case ModelQuarantined() as e:
            key = breaker_key(e.model_id, e.backend, e.installation_id)
            away = Quarantine(since=stored.at, **msgspec.structs.asdict(e))
            return change(new, quarantines=remembered(state.quarantines, key, away, _QUARANTINES_REMEMBERED))
        case QuarantineLifted() as e:
            key = breaker_key(e.model_id, e.backend, e.installation_id)
            return change(
                new, quarantines=without(state.quarantines, key), breakers=without(state.breakers, key)
            )
        case ConfigChanged() as e:
            return _apply_config(new, e)
        case _:
            return new


def _apply_footprints(state: SchedulerState, e: LoadFailed | EvictionDecided) -> Mapping[str, int]:
    load = state.loads.get(e.engine_id)
    if load is None:
        return state.footprints
    found = state.footprints
    if load.spec.placement and any(one.device for one in load.spec.reservations):
        return _apply_excess(load.spec, found, e)
    for size, on_device in ((e.footprint, False), (e.device_footprint, True)):
        if size:
            key = footprint_key(load.spec, on_device=on_device)
            found = remembered(found, key, size, _FOOTPRINTS_REMEMBERED)
    return found


def _apply_excess(
    spec: EngineSpec, found: Mapping[str, int], e: LoadFailed | EvictionDecided
) -> Mapping[str, int]:
    devices = [one for one in spec.reservations if one.device]
    machine = [one for one in spec.reservations if not one.device]
    if isinstance(e, LoadFailed) and e.failure.code == NO_DEVICE_MEMORY:
        # It did not get what was reserved for it, so next time that much more is left free.
        key = excess_key(spec, on_device=True)
        more = max(NO_MEMORY_STEP, 2 * max(0, found.get(key, 0)))
        return remembered(found, key, more, _FOOTPRINTS_REMEMBERED)
    for size, parts, on_device in ((e.footprint, machine, False), (e.device_footprint, devices, True)):
        if size and parts:
            excess = (size - sum(one.claimable + one.compute for one in parts)) // len(parts)
            found = remembered(found, excess_key(spec, on_device=on_device), excess, _FOOTPRINTS_REMEMBERED)
    return found


def _apply_interrupted(state: SchedulerState, engine_id: str, at: float) -> Mapping[str, Interrupted]:
    load = state.loads.get(engine_id)
    if load is None:
        return state.interrupted
    key = config_key(load.spec.model_id, load.spec.mode)
    interrupted = Interrupted(spec=load.spec, at=at, kept=load.kept)
    return remembered(state.interrupted, key, interrupted, _INTERRUPTED_REMEMBERED)


def _apply_proven(
    state: SchedulerState, e: LoadFailed | EvictionDecided | BreakerClosed
) -> Mapping[str, tuple[str, ...]]:
    key = proven_key(e.model_id, e.backend)
    before = tuple(one for one in state.proven.get(key, ()) if one != e.installation_id)
    now = (*before[-_VERSIONS_REMEMBERED:], e.installation_id)
    return remembered(state.proven, key, now, _PROVEN_REMEMBERED)


def _apply_unproven(state: SchedulerState, e: BreakerOpened) -> Mapping[str, tuple[str, ...]]:
    key = proven_key(e.model_id, e.backend)
    left = tuple(one for one in state.proven.get(key, ()) if one != e.installation_id)
    return {**state.proven, key: left} if left else without(state.proven, key)


def _apply_config(state: SchedulerState, e: ConfigChanged) -> SchedulerState:
    """The changed configuration, without the failures of the old one."""
    key = config_key(e.model_id, e.mode)
    old = state.configs.get(key, ModelConfigState())
    left = msgspec.structs.replace(old, **dict.fromkeys(e.reset)) if e.reset else old
    # Older versions stored values that are out of bounds today: those are ignored.
    sane = e.context_size is not None and -1 <= e.context_size <= CONTEXT
    lasting = e.keep_alive is not None and -DURATION <= e.keep_alive <= DURATION
    fitting = e.flags is not None and not flags_complaint(e.flags)
    new = ModelConfigState(
        context_size=e.context_size if sane else left.context_size,
        flags=e.flags if fitting else left.flags,
        keep_alive=e.keep_alive if lasting else left.keep_alive,
        slots=left.slots if e.slots is None else e.slots,
        prompt_cache=left.prompt_cache if e.prompt_cache is None else e.prompt_cache,
        require_device=left.require_device if e.require_device is None else e.require_device,
    )
    configs = dict(without(state.configs, key))
    if new != ModelConfigState():
        configs[key] = new
    breakers = state.breakers
    if msgspec.structs.replace(old, keep_alive=None) != msgspec.structs.replace(new, keep_alive=None):
        breakers = {one: it for one, it in breakers.items() if not one.startswith(f"{e.model_id}|")}
    return msgspec.structs.replace(state, configs=configs, breakers=breakers)
