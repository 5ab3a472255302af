"""The names of models over time: which model a name means, since when, and which request gave or took it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from greenroom.actors.library.events import ModelCommitted, ModelRemoved, ModelTagged
from greenroom.runner.diagnosis.explanation import listed
from greenroom.runner.diagnosis.history import Happening, History
from greenroom.runner.diagnosis.times import moment
from greenroom.runner.models.references import familiar


class NameChange(NamedTuple):
    """A name begins or ceases to mean a model."""

    happening: Happening
    model_id: str
    """The model it means from now on; empty when it means none."""


def name_changes(tag: str, history: History) -> list[NameChange]:
    """What a canonical reference has meant, the oldest first."""
    found: list[NameChange] = []
    for one in _library(tag, history):
        match one.event:
            case ModelCommitted(model=model):
                model_id, has = model.id, tag in model.tags
            case ModelTagged(model_id=model_id, tags=tags):
                has = tag in tags
            case ModelRemoved(model_id=model_id):
                has = False
            case _:
                continue
        means = found[-1].model_id if found else ""
        if has and means != model_id:
            found.append(NameChange(one, model_id))
        elif not has and means == model_id:
            found.append(NameChange(one, ""))
    return found


def told_under(tag: str, history: History, now: float) -> str:
    """A sentence if a name means another model than before, or none any more; else nothing."""
    past = name_changes(tag, history)
    if len(past) < 2:
        return ""
    (*_, before, last), name = past, familiar(tag)
    at, who = moment(last.happening.at, now), history.who(last.happening.record.cause)
    model = history.library.models.get(before.model_id)
    if not last.model_id:
        if model is None:
            return ""  # that it was removed is another answer
        names = [one for one in model.tags if not one.startswith(("file:", "pypi:"))] or model.tags
        still = listed(familiar(one) for one in names) if names else _short(model.id)
        taken = f"since {who} took it away at {at}" if who else f"since {at}"
        return f"{name} has named no model {taken}; its model is still in the store as {still}."
    if not before.model_id or before.model_id == last.model_id:
        return ""
    moved = f", when {who} moved the name," if who else ""
    return (
        f"Since {at}{moved} {name} has meant model {_short(last.model_id)}; before, it meant "
        f"{_short(before.model_id)}."
    )


def tag_change(happening: Happening, event: ModelTagged, history: History) -> str:
    """What a change of a model's names was, as what a request did."""
    before: set[str] = set()
    for one in history.events_of(event.model_id):
        if one.record.seq >= happening.record.seq:
            break
        if isinstance(one.event, ModelCommitted):
            before = set(one.event.model.tags)
        elif isinstance(one.event, ModelTagged):
            before = set(one.event.tags)
    given = [familiar(tag) for tag in event.tags if tag not in before]
    taken = [familiar(tag) for tag in sorted(before - {*event.tags})]
    kept = [familiar(tag) for tag in event.tags if tag in before] or [f"model {_short(event.model_id)}"]
    parts = [f"gave {kept[-1]} the name {listed(given)}"] if given else []
    parts += [f"took the name {listed(taken)} from {kept[-1]}"] if taken else []
    return f"It {listed(parts)}." if parts else ""


def _library(tag: str, history: History) -> Iterator[Happening]:
    """The library's events of every model that has had the name, in order."""
    ids = {
        one.about.models[0]
        for one in history.pulls.get(tag, ())
        if one.about.models and isinstance(one.event, ModelCommitted | ModelTagged)
    }
    events = {
        one.record.seq: one
        for model in ids
        for one in history.events_of(model)
        if one.record.stream == "library"
    }
    yield from (one for _, one in sorted(events.items()))


def _short(model_id: str) -> str:
    return model_id.removeprefix("sha256:")[:12]
