"""What follows from failed loads: pauses, breakers, and quarantine on a version of a backend.

Failures that count against the model open a breaker, which is stored. A full disk or a full process table
says nothing about a model, so it opens no breaker and quarantines nothing. But each try costs events, so
there is a pause that grows from a second to a minute. It is not stored: the machine may be well again after
a restart.

A model is quarantined on an installation that cannot load it, if it has never run there but has run on
another of the same backend, which is still installed. The older one then serves it; all other models stay on
the newer one. One engine that ends by itself before it is ready is enough, and the requests waiting for it
are served by the older one without an error. Ends with another possible cause (killed, too slow, had been
ready) send it there only once they open the breaker. A quarantine is lifted
- when either installation is gone,
- when a newer installation of the backend comes into use: the model is tried there,
- when a user brings the installation into use again, asks for its version, or reconfigures the model,
- when the model fails on the older one too: the version was not to blame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from greenroom.actors.bounded_maps import remembered
from greenroom.actors.scheduler.backend_choice import Statuses, in_a_row, whole
from greenroom.actors.scheduler.events import ModelQuarantined, QuarantineLifted
from greenroom.actors.scheduler.state import (
    Quarantine,
    SchedulerState,
    Setback,
    breaker_key,
    breaker_of,
    proven_key,
)
from greenroom.actors.values import Engine, EngineSpec, Failure, Installation

FAILURES_TO_OPEN = 3
LONGEST_COOL_DOWN = 300.0
SPARED = 2
"""Loads in a row that may be lost, through no fault of theirs, before the next one has to wait."""
FIRST_COOL_DOWN = 10.0
_LONGEST_PAUSE = 60.0
_FORGOTTEN_AFTER = 300.0
_REMEMBERED = 64


def cool_down(failures: int) -> float:
    """Seconds before the next try: doubling, bounded."""
    return min(LONGEST_COOL_DOWN, FIRST_COOL_DOWN * 2.0 ** min(failures - FAILURES_TO_OPEN, 10))


def setbacks_after(
    before: Mapping[str, Setback], spec: EngineSpec, failure: Failure, now: float, *, spared: int = 0
) -> dict[str, Setback]:
    """With this failure; `now` is the monotonic second. The first `spared` in a row cost no pause."""
    key = breaker_of(spec)
    old = before.get(key)
    count = old.count + 1 if old is not None and now - old.at < _FORGOTTEN_AFTER else 1
    pause = min(_LONGEST_PAUSE, 2.0 ** (min(count - spared, 10) - 1)) if count > spared else 0.0
    return remembered(before, key, Setback(failure=failure, count=count, pause=pause, at=now), _REMEMBERED)


_FROM_OUTSIDE = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"})
"""Signals from outside: the kernel short of memory, a user, a shutdown."""


def is_telling(engine: Engine | None, failure: Failure) -> bool:
    """Whether the engine can only have ended by itself, before it was ready."""
    if engine is None or engine.exit is None or engine.fault or failure.code != "engine_failed":
        return False
    return engine.exit.signal not in _FROM_OUTSIDE


def broken_by_version(
    spec: EngineSpec, failures: int, reason: str, state: SchedulerState, statuses: Statuses
) -> ModelQuarantined | None:
    """The quarantine that sends the model back to the latest whole installation it has run on; None if it has
    run on this one, or on no other."""
    usable = whole(statuses, spec.backend)
    proven = state.proven.get(proven_key(spec.model_id, spec.backend), ())
    if spec.installation_id in proven or spec.installation_id not in usable:
        return None
    good = next((usable[one] for one in reversed(proven) if one in usable), None)
    if good is None:
        return None
    return ModelQuarantined(
        model_id=spec.model_id,
        model_ref=spec.model_ref,
        backend=spec.backend,
        installation_id=spec.installation_id,
        version=usable[spec.installation_id].version,
        back_to=good.id,
        back_to_version=good.version,
        failures=failures,
        reason=reason,
    )


def broken_by_variant(
    spec: EngineSpec, failures: int, reason: str, state: SchedulerState, statuses: Statuses
) -> ModelQuarantined | None:
    """The quarantine that sends the model on to the next installed variant in the machine's order."""
    usable = whole(statuses, spec.backend)
    here = usable.get(spec.installation_id)
    if here is None:
        return None
    places = {one.name: place for place, one in enumerate(statuses[spec.backend].variants)}
    others = [
        one
        for one in usable.values()
        if one.variant != here.variant
        and breaker_key(spec.model_id, spec.backend, one.id) not in state.quarantines
    ]
    # The usual one, which is for the processor, has no name here and comes last.
    following = min(
        others, key=lambda one: (places.get(one.variant, len(places)), -one.built_at), default=None
    )
    if following is None:
        return None
    return ModelQuarantined(
        model_id=spec.model_id,
        model_ref=spec.model_ref,
        backend=spec.backend,
        installation_id=here.id,
        version=_named(here),
        back_to=following.id,
        back_to_version=_named(following),
        failures=failures,
        reason=reason,
    )


def _named(one: Installation) -> str:
    return f"{one.variant} {one.version}".strip()


def cleared_by(spec: EngineSpec, failures: int, state: SchedulerState) -> Iterator[QuarantineLifted]:
    """The quarantines whose older installation fails too, by a breaker that opens there."""
    for one in state.quarantines.values():
        if (one.model_id, one.backend, one.back_to) == (spec.model_id, spec.backend, spec.installation_id):
            yield lifted(one, f"it failed {in_a_row(failures)} on {one.back_to_version} too")


def why_lifted(one: Quarantine, statuses: Statuses, before: Mapping[str, str]) -> str:
    """Why a quarantine has lost its reason; empty while it has not.

    `before`: backend → installation last seen in use.
    """
    status = statuses.get(one.backend)
    if status is None:
        return ""
    usable = whole(statuses, one.backend)
    quarantined, current = usable.get(one.installation_id), status.current
    if quarantined is None:
        return f"{one.backend} {one.version} is no longer installed"
    if one.back_to not in usable:
        return f"{one.backend} {one.back_to_version}, which served it, is no longer installed"
    if current is not None and current.variant == quarantined.variant and _is_newer(current, quarantined):
        return f"a newer installation of {one.backend} ({current.version}) is in use"
    if current == quarantined and before.get(one.backend, quarantined.id) != quarantined.id:
        return f"{one.backend} {one.version} was brought into use again"
    return ""


def lifted(one: Quarantine, reason: str) -> QuarantineLifted:
    return QuarantineLifted(
        model_id=one.model_id,
        model_ref=one.model_ref,
        backend=one.backend,
        installation_id=one.installation_id,
        reason=reason,
    )


def lifted_by_hand(
    state: SchedulerState, reason: str, *, backend: str = "", model_id: str = ""
) -> tuple[QuarantineLifted, ...]:
    """All models of a backend, or one model everywhere, may be tried again."""
    return tuple(
        lifted(one, reason)
        for one in state.quarantines.values()
        if (backend and one.backend == backend) or (model_id and one.model_id == model_id)
    )


def _is_newer(current: Installation, quarantined: Installation) -> bool:
    return current.id != quarantined.id and current.built_at > quarantined.built_at
