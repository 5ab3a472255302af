"""Why requests for a model are refused, with what has changed since."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from greenroom.actors.scheduler.events import LoadRefused
from greenroom.actors.scheduler.ledger import context_reckoned
from greenroom.runner.diagnosis import stop_reasons
from greenroom.runner.diagnosis.configured import last_change
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, full_stop, tool_output
from greenroom.runner.diagnosis.history import Happening
from greenroom.runner.diagnosis.model_history import ModelHistory
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.old_journals import missing_backends
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.units import format_size


def why_refused(model: ModelHistory, refused: LoadRefused, happening: Happening) -> Explanation:
    """The refusal; first of all what has changed since, if the next request is not refused for it."""
    found = stop_reasons.of_refusal(refused, happening.at, model.name, model.now)
    if refused.binding:
        found.answer = full_stop(
            f"requests for it on {refused.binding} have been refused since "
            f"{moment(happening.at, model.now)}: {refused.message}"
        )
    if refused.code == "no_room":
        found.also = tuple(_pinned(model))
    if refused.code == "does_not_fit":
        _tell_size(found, model, refused, happening)
    backend = next(iter(missing_backends(refused)), "")
    if backend:
        _tell_backend(found, model, backend, refused)
    return found


def told_aside(happening: Happening, now: float) -> str:
    """What a request for one backend was refused, where that says nothing about others."""
    refused = happening.event
    assert isinstance(refused, LoadRefused)
    return full_stop(f"On {refused.binding} it was refused at {clock(happening.at, now)}: {refused.message}")


def _tell_size(found: Explanation, model: ModelHistory, refused: LoadRefused, happening: Happening) -> None:
    """Whose context needs so much, and whether it was configured again since."""
    name, seq = shlex.quote(model.name), happening.record.seq
    now_set = last_change(model.history, model.id, refused.mode, "context_size")
    if now_set is not None and now_set.happening.record.seq > seq:
        at, who = moment(now_set.happening.at, model.now), now_set.who(model.history)
        found.answer = (
            f"{who} configured {now_set.told()} at {at}, so the next request is tried again. Before that, "
            f"requests for it were refused: {full_stop(refused.message)}"
        )
        found.remedies = (Remedy(aim="To load it", command=stop_reasons.run(model.name)),)
        return
    needed, budget, context = (found.numbers.get(one, 0) for one in ("needed", "budget", "context_size"))
    stored = model.history.library.models.get(model.id)
    own = context_reckoned(stored.context_size, stored.context_length) if stored is not None else 0
    if now_set is None or now_set.event.context_size is None or context != now_set.event.context_size:
        return
    is_own = f" Its own context is {own} tokens." if own and own < context else ""
    found.answer = (
        f"requests for it have been refused since {moment(happening.at, model.now)}: it needs "
        f"{format_size(needed)} with the context of {context:.0f} tokens that "
        f"{now_set.who(model.history)} configured at {clock(now_set.happening.at, model.now)}, and engines "
        f"may use {format_size(budget)} in total.{is_own}"
    )
    again = f"greenroom configure {name} --reset context"
    found.remedies = (Remedy(aim="To give it its own context again", command=again), *found.remedies)


def _tell_backend(found: Explanation, model: ModelHistory, backend: str, refused: LoadRefused) -> None:
    """The present state of the backend that it needs."""
    state = model.history.backend(backend)
    about = [
        one for one in model.history.backends.get(backend, ()) if one.record.stream == f"install/{backend}"
    ]
    found.steps = tuple(one.step for one in about[-6:])
    if state.usable is not None:
        since = [one for one in about if one.record.type == "installation_committed"]
        at = f" since {moment(since[-1].at, model.now)}" if since else ""
        found.answer = (
            f"{backend} {state.usable.version} has been installed{at}, so the next request works. Before "
            f"that, requests for it were refused: {full_stop(refused.message)}"
        )
        found.remedies = (Remedy(aim="To load it", command=stop_reasons.run(model.name)),)
    elif state.job is not None:
        found.also = (f"{backend} is being installed.",)
        progress = Remedy(aim="To see its progress", command=f"greenroom why {backend}")
        found.remedies = (progress, *found.remedies[-1:])
    elif state.failure is not None:
        found.numbers["attempts"] = float(_attempts(about))
        found.words = tool_output(state.failure.detail)


def _pinned(model: ModelHistory) -> Iterator[str]:
    for load in model.history.scheduler.loads.values():
        if why := model.pinned_by(load):
            name, held = shown_model(load.spec.model_id, model.history), format_size(load.spec.memory)
            yield f"{name} holds {held} and is pinned: {why}."


def _attempts(about: Sequence[Happening]) -> int:
    """Of the last job to install a backend."""
    job = next((one.about.job for one in reversed(about) if one.about.job), "")
    return 1 + sum(one.about.job == job and one.record.type == "install_attempt_failed" for one in about)
