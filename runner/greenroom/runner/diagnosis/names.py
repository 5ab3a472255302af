"""What a name in a question means."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import NamedTuple

from greenroom.runner.diagnosis.explanation import Kind
from greenroom.runner.diagnosis.history import History
from greenroom.runner.models.references import (
    AmbiguousName,
    BadReference,
    Reference,
    familiar,
    find_model,
    shown,
)
from greenroom.runner.record.row import ID

_SHORTEST_PREFIX = 4


class UnknownName(LookupError):
    """Nothing in the journal has this name; `near` are some that look like it."""

    def __init__(self, name: str, near: Collection[str], message: str = "") -> None:
        name = shown(name)
        hint = f" Did you mean {_either(near)}?" if near else ""
        super().__init__(message or f'The journal has no model, backend, engine or request "{name}".{hint}')
        self.name = name
        self.near = tuple(near)


class Meaning(NamedTuple):
    kind: Kind
    id: str
    """Of a model that was never stored: its reference."""


def meaning_of(name: str, history: History, backends: Mapping[str, str]) -> Meaning:
    """What a name refers to.

    1. A backend, by its name: one the journal or this Greenroom knows.
    2. An engine, by its id or the beginning of it.
    3. A request, by its id, with or without its first letter.
    4. A stored model, by any of its names.
    5. A model that was stored or requested earlier.
    6. The daemon.

    Raises UnknownName with names that are near.
    """
    name = name.strip()
    if name in history.backends or name in backends:  # 1
        return Meaning("backend", name)
    if name in history.named:  # 2
        return Meaning("engine", name)
    if name in history.requests:  # 3
        return Meaning("request", name)
    if ID.fullmatch(name) or ID.fullmatch(f"r-{name}"):
        return Meaning("request", name if name.startswith("r-") else f"r-{name}")
    try:
        model = find_model(name, history.library.models.values())  # 4
    except AmbiguousName as error:
        raise UnknownName(name, (), str(error)) from error
    except BadReference:
        model = None
    if model is not None:
        return Meaning("model", model.id)
    for reference in _references(name):  # 5
        if reference in history.subjects.names:
            return Meaning("model", history.subjects.names[reference])
        if reference in history.pulls:
            return Meaning("model", reference)
    if name in history.models:
        return Meaning("model", name)
    if len(name) >= _SHORTEST_PREFIX and history.named:
        if len(history.named) > 1:
            several = ", ".join(list(history.named)[-5:])
            raise UnknownName(name, (), f'Several engines start with "{shown(name)}": {several}.')
        return Meaning("engine", next(iter(history.named)))
    if name in ("daemon", "greenroom"):  # 6
        return Meaning("daemon", "daemon")
    raise UnknownName(name, _near(name, history, backends))


def shown_model(model_id: str, history: History) -> str:
    """How people call a model, now or as they last did."""
    model = history.library.models.get(model_id)
    if model is not None and model.tags:
        tags = [one for one in model.tags if not one.startswith(("file:", "pypi:"))] or list(model.tags)
        return familiar(tags[0])
    names = [name for name, one in history.subjects.names.items() if one == model_id]
    if names:
        return familiar(names[-1])
    return model_id[7:19] if model_id.startswith("sha256:") else familiar(model_id)


def _references(name: str) -> list[str]:
    """The canonical forms a name may be filed under."""
    try:
        reference = Reference.parse(name)
    except BadReference:
        return [name]
    return [name, str(reference), reference.stored_tag]


def _near(name: str, history: History, backends: Collection[str]) -> list[str]:
    known = {familiar(one) for one in (*history.subjects.names, *history.pulls)}
    known |= {*history.backends, *backends, *history.engines, *history.requests}
    return difflib.get_close_matches(familiar(name), sorted(known), n=3, cutoff=0.6)


def _either(names: Collection[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
