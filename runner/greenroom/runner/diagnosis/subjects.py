"""What each event of a journal concerns: models, backends, an engine, a job.

Many events name only an engine or a job; an earlier event says which model and backend that is, so records
are read in order, from the first one on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from greenroom.actors.journal.port import Record
from greenroom.actors.kernel.core import Event

K = TypeVar("K")
V = TypeVar("V")

_ENGINES_AND_JOBS = 20_000
"""Remembered; no later event names older ones."""
_BACKEND_STREAMS = ("install/", "runner/")
_UNKNOWN = ("", "")

_decode = msgspec.json.Decoder().decode


class About(msgspec.Struct, frozen=True, gc=False):
    """What one event concerns. Models by id, and by reference where there is no id yet."""

    models: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    """Canonical references in the event: a model's tags, what is pulled, what a load was requested as."""
    backends: tuple[str, ...] = ()
    engine: str = ""
    job: str = ""


class _Fields(NamedTuple):
    """Which of the fields that name its subjects an event type has."""

    spec: bool
    model: bool
    installation: bool
    engine_id: bool
    model_id: bool
    model_ref: bool
    backend: bool
    job: bool
    reference: bool
    tags: bool
    in_favour_of: bool

    @classmethod
    def of(cls, kind: type[Event]) -> _Fields | None:
        """None for an event that names only its engine, as most do."""
        has = cls(*(name in kind.__struct_fields__ for name in cls._fields))
        return None if has.engine_id and sum(has) == 1 else has


class Subjects:
    """Learns from each record, in order, what later ones mean."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        """Every reference a model has ever had → its latest id; the latest names come last."""
        self.engines: OrderedDict[str, tuple[str, str]] = OrderedDict()
        """engine → model, backend; the latest ones."""
        self.pulls: OrderedDict[str, str] = OrderedDict()
        """Job → reference, of the latest pulls."""
        self._fields: dict[type[Event], _Fields | None] = {}

    def of(self, record: Record, event: Event | None = None) -> About:
        """What the next record is about; `event`, where known, saves decoding it again."""
        backend = record.stream.partition("/")[2] if record.stream.startswith(_BACKEND_STREAMS) else ""
        if event is not None:
            return self._of_event(event, backend)
        try:
            fields = _decode(record.data)
        except msgspec.DecodeError:
            fields = None
        if not isinstance(fields, dict):
            return About(backends=(backend,) if backend else ())
        return self._of_fields(fields, backend)

    def engine(self, engine_id: str) -> tuple[str, str]:
        """The model and the backend of an engine; empty when unknown."""
        return self.engines.get(engine_id, _UNKNOWN)

    def _of_event(self, event: Any, backend: str) -> About:
        """From an event that is decoded already."""
        kind = type(event)
        try:
            has = self._fields[kind]
        except KeyError:
            has = self._fields[kind] = _Fields.of(kind)
        if has is None:
            engine = event.engine_id
            model_id, known = self.engines.get(engine, _UNKNOWN)
            backend = backend or known
            return About((model_id,) if model_id else (), (), (backend,) if backend else (), engine)
        engine = model_id = reference = job = favoured = ""
        references: tuple[str, ...] = ()
        if has.spec:
            spec = event.spec
            engine, model_id, reference = spec.engine_id, spec.model_id, spec.model_ref
            backend = backend or spec.backend
        if has.engine_id:
            engine = event.engine_id
        if has.model_id:
            model_id = event.model_id
        if has.model_ref:
            reference = event.model_ref
        if has.model:
            model_id, references = event.model.id, event.model.tags
        if has.tags:
            references = event.tags
        if has.reference:
            reference = event.reference
        if has.installation:
            backend = backend or event.installation.backend
        if has.backend:
            backend = backend or event.backend
        if has.job:
            job = event.job
        if has.in_favour_of:
            favoured = event.in_favour_of
        if reference:
            references = (*references, reference)
        return self._about(engine, model_id, backend, job, references, favoured, asks=has.reference)

    def _of_fields(self, fields: Mapping[str, Any], backend: str) -> About:
        """From the raw fields of an event of any type."""
        spec, model = _mapping(fields, "spec"), _mapping(fields, "model")
        backend = backend or _text(fields, "backend") or _text(spec, "backend")
        references = (
            *_texts(model, "tags"),
            *_texts(fields, "tags"),
            *filter(
                None, (_text(fields, "model_ref") or _text(spec, "model_ref"), _text(fields, "reference"))
            ),
        )
        return self._about(
            _text(fields, "engine_id") or _text(spec, "engine_id"),
            _text(fields, "model_id") or _text(spec, "model_id") or _text(model, "id"),
            backend or _text(_mapping(fields, "installation"), "backend"),
            _text(fields, "job"),
            references,
            _text(fields, "in_favour_of"),
            asks="reference" in fields,
        )

    def _about(
        self,
        engine: str,
        model_id: str,
        backend: str,
        job: str,
        references: tuple[str, ...],
        favoured: str,
        *,
        asks: bool,
    ) -> About:
        """Complete it with what earlier events named, and remember what later ones need."""
        if engine:
            if model_id:
                remember(self.engines, engine, (model_id, backend))
            else:
                model_id, known = self.engines.get(engine, _UNKNOWN)
                backend = backend or known
        if job and asks and references:
            remember(self.pulls, job, references[-1])
        elif job in self.pulls:
            # The catalogue's name of a model is not the one it is stored under.
            references = (*references, self.pulls[job])
        if model_id:
            for name in reversed(references):
                self.names.pop(name, None)
                self.names[name] = model_id
        models = (model_id,) if model_id else ()
        other = self.names.get(favoured, "") if favoured else ""
        if other and other != model_id:
            models = (*models, other)
        return About(models, references, (backend,) if backend else (), engine, job)


def _mapping(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _texts(fields: Mapping[str, Any], name: str) -> list[str]:
    value = fields.get(name)
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def remember(into: OrderedDict[K, V], key: K, value: V) -> None:
    if key not in into and len(into) >= _ENGINES_AND_JOBS:
        into.popitem(last=False)
    into[key] = value
