"""Models that a version of a backend broke: they go back to the version that served them.

A model is quarantined on an installation once the breaker opens for it there, when it has run on another
installation of the same backend, which is still here, and never on this one. From then on that older one
serves it, and every other model goes on with the newer one. A quarantine is left

- when the installation it is about, or the one that serves instead, is not here any more,
- when a newer installation of the backend comes into use: the model is tried there,
- when somebody brings the installation into use again, asks for its version, or configures the model anew,
- when the model dies on the older one too: the version was not to blame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from greenroom.actors import events as ev
from greenroom.actors.choice import Use
from greenroom.actors.facts import EngineSpec, Installation
from greenroom.actors.messages import BackendStatus
from greenroom.actors.scheduler_state import Quarantine, SchedulerState, breaker_key, proven_key

Statuses = Mapping[str, BackendStatus]


def diverted(choice: Use, model_id: str, state: SchedulerState, statuses: Statuses) -> Use:
    """The same backend, from the installation that serves this model."""
    one = state.quarantines.get(breaker_key(model_id, choice.backend, choice.installation_id))
    if one is None or _whole(statuses, choice.backend).get(one.back_to) is None:
        return choice
    reason = (
        f"it is served from {choice.backend} {one.back_to_version}, since it has failed {one.failures} times "
        f"in a row on {one.version}"
    )
    return Use(backend=choice.backend, installation_id=one.back_to, reasons=(*choice.reasons, reason))


def verdict_on(
    spec: EngineSpec, failures: int, reason: str, state: SchedulerState, statuses: Statuses
) -> Iterator[ev.ModelQuarantined | ev.QuarantineLifted]:
    """What follows from a breaker that opens for this engine's model.

    1. It went back to this installation from a newer one: that one was not to blame.
    2. It has never run on this installation and has on another that is whole: it goes back there, to the
       latest of them.
    """
    returned = [one for one in state.quarantines.values() if _returns_to(one, spec)]  # 1
    for one in returned:
        yield lifted(one, f"it has failed {failures} times in a row on {one.back_to_version} too")
    here = _whole(statuses, spec.backend)
    proven = state.proven.get(proven_key(spec.model_id, spec.backend), ())
    if returned or spec.installation_id in proven or spec.installation_id not in here:
        return
    good = next((here[one] for one in reversed(proven) if one in here), None)
    if good is None:
        return
    yield ev.ModelQuarantined(  # 2
        model_id=spec.model_id,
        model_ref=spec.model_ref,
        backend=spec.backend,
        installation_id=spec.installation_id,
        version=here[spec.installation_id].version,
        back_to=good.id,
        back_to_version=good.version,
        failures=failures,
        reason=reason,
    )


def outlived(
    state: SchedulerState, statuses: Statuses, before: Mapping[str, str]
) -> Iterator[ev.QuarantineLifted]:
    """Quarantines without a reason any more. `before`: what was in use of each backend at the last look."""
    for one in state.quarantines.values():
        status = statuses.get(one.backend)
        if status is None:
            continue
        here = _whole(statuses, one.backend)
        quarantined, current = here.get(one.installation_id), status.current
        if quarantined is None:
            yield lifted(one, f"{one.backend} {one.version} is not here any more")
        elif one.back_to not in here:
            yield lifted(one, f"{one.backend} {one.back_to_version}, which served it, is not here any more")
        elif current is not None and _is_newer(current, quarantined):
            yield lifted(one, f"a newer installation of {one.backend} ({current.version}) is in use")
        elif current == quarantined and before.get(one.backend, current.id) != current.id:
            yield lifted(one, f"{one.backend} {one.version} was brought into use again")


def lifted(one: Quarantine, reason: str) -> ev.QuarantineLifted:
    """The event that ends a quarantine."""
    return ev.QuarantineLifted(
        model_id=one.model_id,
        model_ref=one.model_ref,
        backend=one.backend,
        installation_id=one.installation_id,
        reason=reason,
    )


def lifted_by_hand(
    state: SchedulerState, reason: str, *, backend: str = "", model_id: str = ""
) -> tuple[ev.QuarantineLifted, ...]:
    """Somebody wants every model of a backend, or this model everywhere, to be tried again."""
    return tuple(
        lifted(one, reason)
        for one in state.quarantines.values()
        if (backend and one.backend == backend) or (model_id and one.model_id == model_id)
    )


def _returns_to(one: Quarantine, spec: EngineSpec) -> bool:
    return (one.model_id, one.backend, one.back_to) == (spec.model_id, spec.backend, spec.installation_id)


def _is_newer(current: Installation, quarantined: Installation) -> bool:
    return current.id != quarantined.id and current.built_at > quarantined.built_at


def _whole(statuses: Statuses, backend: str) -> dict[str, Installation]:
    """Installations that engines could start from."""
    status = statuses.get(backend)
    if status is None:
        return {}
    return {one.id: one for one in status.installations if not one.broken and one.id not in status.retiring}
