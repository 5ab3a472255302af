"""Finds the subject of a question: `why is poet unloaded`, `why scheduler/8`, `why 4711`, plain `why`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
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
_SHORTEST_ID = 6
"""Minimum hexadecimal digits of a model's id."""
_ENGINE = re.compile(r"[0-9a-f]{6,}-\d+")
_HEX = re.compile(r"[0-9a-f]+")
_JOB = re.compile(r"[a-z][a-z0-9.-]*\.\d+")
_FILLERS = frozenset(
    "why is was are were did does do has not the a an my model backend engine request".split()
)
_TOPICS: Mapping[str, Kind] = {
    **dict.fromkeys(("daemon", "greenroom", "server"), "daemon"),
    "queue": "queue",
    **dict.fromkeys(("memory", "ledger"), "memory"),
    **dict.fromkeys(("devices", "device", "gpu", "gpus", "graphics"), "devices"),
    "requests": "requests",
}

Clients = Callable[[], Collection[str]]
"""The names of the clients in the record of requests."""


class UnknownName(LookupError):
    """Nothing in the journal has this name. `near`: similar names; `advice`: what to do."""

    def __init__(self, name: str, near: Collection[str], message: str = "", advice: str = "") -> None:
        name = shown(name)
        hint = f" Did you mean {_either(near)}?" if near else ""
        super().__init__(message or f'The journal has no model, backend, engine or request "{name}".{hint}')
        self.name = name
        self.near = tuple(near)
        self.advice = advice


class Meaning(NamedTuple):
    kind: Kind
    id: str
    """For a model that was never stored, its reference. Empty if there is only one, such as the queue."""
    asked: str = ""
    """A model's name as written in the question."""


def no_clients() -> Collection[str]:
    return ()


def meaning_of(
    question: str, history: History, backends: Mapping[str, str], clients: Clients = no_clients
) -> Meaning:
    """The subject of a question: its first word that is a known name. An empty question asks for an overview.

    Raises UnknownName.
    """
    words = question.split()
    names = [one for one in words if one.lower() not in _FILLERS] or words
    if not names:
        return Meaning("overview", "")
    for name in names:
        if (found := _known(name, history, backends, clients)) is not None:
            return found
    raise _unknown(names[0], history, backends)


def _known(name: str, history: History, backends: Mapping[str, str], clients: Clients) -> Meaning | None:
    """What a name refers to; None if nothing has it.

    1. A backend in the journal or in this version of Greenroom, or a model of a remote backend.
    2. An event, a job or an engine, by its id.
    3. A request, by its id, with or without its first letter.
    4. A stored model, by any of its names.
    5. A model that was stored or requested earlier.
    6. An engine or a model by the beginning of its id.
    7. A process.
    8. The daemon, its queue, its memory, its graphics devices, its requests.
    9. A client.

    Raises UnknownName for an ambiguous name.
    """
    if name in history.backends or name in backends:  # 1
        return Meaning("backend", name)
    if name.partition("/")[0] in history.remotes:
        return Meaning("backend", name.partition("/")[0], name)
    if name in history.asked:  # 2
        return Meaning("event", name)
    if name in history.jobs:
        return Meaning("job", name)
    if name in history.named:
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
        return Meaning("model", model.id, name)
    if earlier := _earlier(name, history):  # 5
        return Meaning("model", earlier, name)
    if shortened := _shortened(name, history):  # 6
        return shortened
    if name.isdecimal() and int(name) in history.pids:  # 7
        engine = history.pids[int(name)]
        return Meaning("engine", engine) if engine else Meaning("daemon", "daemon")
    if topic := _TOPICS.get(name.lower()):  # 8
        return Meaning(topic, "daemon" if topic == "daemon" else "")
    return Meaning("client", name) if name in clients() else None  # 9


def _earlier(name: str, history: History) -> str:
    """The id or, failing that, the reference of a model that once had this name or was requested by it."""
    for reference in _references(name):
        if reference in history.subjects.names:
            return history.subjects.names[reference]
        if reference in history.pulls:
            return reference
    if name in history.models:
        return name
    # The newest model whose name ends with this one, with or without its tag.
    called = name.lower().replace("hf.co/", "huggingface.co/", 1)
    known: list[str] = [*history.pulls, *history.subjects.names]
    for reference in reversed(known):
        if _is_short_for(called, familiar(reference).lower()):
            return history.subjects.names.get(reference, reference)
    return ""


def _is_short_for(name: str, whole: str) -> bool:
    """Whether the name is short for another: `poet` and `org/poet` are for `hf.co/org/poet:Q4_K_M`."""
    return any(f"/{one}".endswith(f"/{name}") for one in (whole, whole.rpartition(":")[0]))


def _shortened(name: str, history: History) -> Meaning | None:
    if len(name) >= _SHORTEST_PREFIX:
        engines = [one for one in history.named if one.startswith(name)]
        if len(engines) > 1:
            several = ", ".join(engines[-5:])
            raise UnknownName(name, (), f'Several engines start with "{shown(name)}": {several}.')
        if engines:
            return Meaning("engine", engines[0])
    digits = name.removeprefix("sha256:")
    if len(digits) < _SHORTEST_ID or not _HEX.fullmatch(digits):
        return None
    models = dict.fromkeys((*history.library.models, *history.models))
    fitting = [one for one in models if one.removeprefix("sha256:").startswith(digits)]
    if len(fitting) > 1:
        several = ", ".join(f"{shown_model(one, history)} ({one[7:19]})" for one in fitting[-5:])
        raise UnknownName(name, (), f'Several models have ids that start with "{shown(name)}": {several}.')
    return Meaning("model", fitting[0]) if fitting else None


def shown_model(model_id: str, history: History, asked: str = "") -> str:
    """A model's display name: `asked` if that is one of its names, else its current or latest name."""
    model = history.library.models.get(model_id)
    if (tag := asked_tag(asked, history)) and (model is None or tag in model.tags):
        return shown(asked) if asked.lower().startswith("hf.co/") else familiar(tag)
    if model is not None and model.tags:
        tags = [one for one in model.tags if not one.startswith(("file:", "pypi:"))] or list(model.tags)
        return familiar(tags[0])
    names = [name for name, one in history.subjects.names.items() if one == model_id]
    if names:
        return familiar(names[-1])
    return model_id[7:19] if model_id.startswith("sha256:") else familiar(model_id)


def asked_tag(name: str, history: History) -> str:
    """The canonical reference of a name in a question; empty for an id or an unknown name."""
    return next((one for one in _references(name) if one in history.pulls), "")


def _references(name: str) -> list[str]:
    """The canonical forms of a name."""
    try:
        reference = Reference.parse(name)
    except BadReference:
        return [name]
    return [name, str(reference), reference.stored_tag]


def _unknown(name: str, history: History, backends: Collection[str]) -> UnknownName:
    """The error for a name that nothing has."""
    stream, _, version = name.rpartition("/")
    if version.isdecimal() and stream in history.versions:
        last = history.versions[stream]
        return UnknownName(
            name, (), f"There is no event {shown(name)}: the last of {stream} is {stream}/{last}."
        )
    if name.isdecimal():
        return UnknownName(name, (), f"No engine or daemon in this journal was process {shown(name)}.")
    if _JOB.fullmatch(name) and name.rpartition(".")[0] in (*backends, *history.backends, "pull"):
        return UnknownName(name, (), f"The journal has no job {shown(name)}.")
    if near := _near(name, history, backends):
        return UnknownName(name, near)
    if _ENGINE.fullmatch(name):
        return UnknownName(
            name, (), f"The journal has no engine {shown(name)}.", "To see the latest: greenroom ps --all"
        )
    try:
        called = familiar(str(Reference.parse(name)))
    except BadReference:
        return UnknownName(name, ())
    return UnknownName(
        name,
        (),
        f"{called} is not in the store, and was never pulled.",
        f"To pull it: greenroom pull {called}",
    )


def _near(name: str, history: History, backends: Collection[str]) -> list[str]:
    known = {familiar(one) for one in (*history.subjects.names, *history.pulls)}
    known |= {*history.backends, *backends, *history.recent_engines, *history.requests, *_TOPICS}
    return difflib.get_close_matches(familiar(name), sorted(known), n=3, cutoff=0.6)


def _either(names: Collection[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
