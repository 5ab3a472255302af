"""Filters for the events of a journal."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from greenroom.actors.journal.port import Record
from greenroom.runner.diagnosis.sentences import TOLD
from greenroom.runner.diagnosis.subjects import About, Subjects
from greenroom.runner.models.references import BadReference, Reference, familiar, is_id, shown
from greenroom.runner.record.row import ID

if TYPE_CHECKING:
    from greenroom.runner.diagnosis.problems import Problems

_UNREAD = About()
"""What a record is about, where that does not matter."""
_SHORTEST_PREFIX = 4
"""Characters of an engine's id."""


class Filter:
    """Takes the records of one journal from its beginning, and says of each whether it is wanted.

    Of several kinds any counts; everything else must hold together. An event that names only an engine or a
    job is about the model and the backend of that.
    """

    def __init__(
        self,
        *,
        backend: str = "",
        model: str = "",
        engine: str = "",
        stream: str = "",
        kinds: Collection[str] = (),
        cause: str = "",
        causes: Collection[str] = (),
        problems: bool = False,
        since: float | None = None,
        until: float | None = None,
    ) -> None:
        """What is empty does not matter.

        Args:
            backend: its name.
            model: any of its names, or its id.
            engine: its id or the beginning of it.
            stream: such as `install/mlx`.
            kinds: types of events; `install_*` takes all that begin so.
            cause: the id of an event or of a request: whatever it led to, directly or not, and itself.
            causes: ids of events that led to `cause`; they are taken as well.
            problems: only what went wrong.
            since: wall-clock second of the first that counts.
            until: wall-clock second of the last that counts.
        """
        self._backend = backend
        self._engine = engine
        self._stream = stream
        self._kinds = tuple(kinds)
        self._since = since
        self._until = until
        self._cause = cause
        self._led_to = {cause}
        self._causes = frozenset(causes)
        self._problems: Problems | None = None
        if problems:
            from greenroom.runner.diagnosis.problems import Problems

            self._problems = Problems()
        self._model = model
        self._references = _references(model) if model else frozenset()
        self._subjects = Subjects()
        self._asks_for_subject = bool(backend or engine or model)
        self._backends: set[str] = set()
        self._streams: set[str] = set()
        self._engines: set[str] = set()
        self._has_met_model = self._has_met_cause = False

    def takes(self, record: Record) -> bool:
        about = self._subjects.of(record) if self._asks_for_subject else _UNREAD
        caused = record.cause in self._led_to or record.id == self._cause
        self._meet(record, about, caused)
        if self._cause and caused:
            self._led_to.add(record.id)
        is_problem = self._problems is None or self._problems.takes(record)
        return (
            is_problem
            and (caused or not self._cause or record.id in self._causes)
            and self._backend in ("", *about.backends)
            and about.engine.startswith(self._engine)
            and self._stream in ("", record.stream)
            and (not self._kinds or any(fnmatchcase(record.type, kind) for kind in self._kinds))
            and (self._since is None or record.at >= self._since)
            and (self._until is None or record.at <= self._until)
            and (not self._model or self._is_about_model(about))
        )

    def _meet(self, record: Record, about: About, caused: bool) -> None:
        self._backends.update(about.backends)
        self._streams.add(record.stream)
        if self._engine:
            self._engines.add(about.engine)
        self._has_met_cause = self._has_met_cause or caused
        if self._model and not self._has_met_model:
            self._has_met_model = self._is_about_model(about)

    def _is_about_model(self, about: About) -> bool:
        if self._references.intersection(about.references):
            return True
        if is_id(self._model):
            wanted = f"sha256:{self._model.removeprefix('sha256:')}"
            return any(one.startswith(wanted) for one in about.models)
        known = {self._subjects.names.get(one) for one in self._references}
        return any(one in known for one in about.models)

    def unknown_names(self) -> list[str]:
        """A sentence for each name that no record has had so far, with names that are near."""
        said = []
        for what, name, known in (
            ("backend", self._backend, self._backends),
            ("stream", self._stream, self._streams),
        ):
            if name and name not in known:
                said.append(_unknown(what, name, known))
        if self._engine and not any(one.startswith(self._engine) for one in self._engines):
            said.append(_unknown("engine", self._engine, self._engines))
        if self._model and not self._has_met_model:
            names = {familiar(one) for one in self._subjects.names}
            said.append(_unknown("model", self._model, names))
        if self._cause and not self._has_met_cause:
            said.append(f"The journal has no event or request {self._cause}.")
        return said


def filter_about(name: str, records: Iterable[Record]) -> dict[str, Any]:
    """What a filter takes for a name of any kind: the arguments of `Filter`.

    Of an event (by its id or its number) it is what led to it, itself, and what it has led to; of a request
    what it has led to; of an engine, a backend or a model its events. Raises LookupError.
    """
    name = name.strip()
    causes: dict[str, str] = {}
    subjects, backends, engines, asked = Subjects(), set[str](), set[str](), ID.fullmatch(f"r-{name}")
    for record in records:
        causes[record.id] = record.cause
        if name in (record.id, str(record.seq)):
            return {"cause": record.id, "causes": _chain(record.cause, causes)}
        about = subjects.of(record)
        backends.update(about.backends)
        if about.engine:
            engines.add(about.engine)
    if name in backends:
        return {"backend": name}
    if len(name) >= _SHORTEST_PREFIX and any(one.startswith(name) for one in engines):
        return {"engine": name}
    if asked or ID.fullmatch(name):
        return {"cause": f"r-{name}" if asked else name}
    if name in set(causes.values()):
        return {"cause": name}
    wanted = {subjects.names[one] for one in _references(name) if one in subjects.names}
    if wanted or is_id(name):
        return {"model": name}
    known = {*backends, *engines, *map(familiar, subjects.names)}
    near = difflib.get_close_matches(name, sorted(known), n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise LookupError(f"The journal has no event, request, engine, backend or model {shown(name)}.{hint}")


def _chain(cause: str, causes: Mapping[str, str]) -> tuple[str, ...]:
    """The events that led to one, from its cause up; a request's id ends it."""
    found: list[str] = []
    while cause in causes and cause not in found:
        found.append(cause)
        cause = causes[cause]
    return tuple(found)


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"The journal has no {what} {name}.{hint}"


def unknown_kinds(kinds: Collection[str]) -> list[str]:
    """A sentence for each kind that no event of ours has; a host's own events may still have it."""
    said = []
    for kind in kinds:
        if any(fnmatchcase(tag, kind) for tag in TOLD):
            continue
        near = difflib.get_close_matches(kind, sorted(TOLD), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        said.append(f"Greenroom has no event type {kind}.{hint}")
    return said


def _references(name: str) -> frozenset[str]:
    """The canonical forms a name may be stored in."""
    try:
        reference = Reference.parse(name)
    except BadReference:
        return frozenset({name})
    return frozenset({name, str(reference), reference.stored_tag} - {""})
