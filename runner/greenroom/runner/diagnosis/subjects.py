"""What an event is about: models, backends, engines, jobs. Events of unknown types included.

Many events name only an engine or a job; which model and backend that is was said by an earlier one, so
the journal is read from its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from greenroom.actors.journal.port import Record
from greenroom.actors.kernel.core import Event

_REMEMBERED = 20_000
"""Engines and jobs; older ones are told of by nothing any more."""
_STREAMS = ("install/", "runner/")

_NOBODY = ("", "")

_decode = msgspec.json.Decoder().decode


class About(NamedTuple):
    """Whom one event concerns. Models by id, and by reference where it has no id yet."""

    models: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    """Canonical references the event itself has: a model's tags, what is pulled, what a load was asked by."""
    backends: tuple[str, ...] = ()
    engine: str = ""
    job: str = ""


class _Fields(NamedTuple):
    """Which of the fields that say whom it is about an event has."""

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
    def of(cls, kind: type[Event]) -> _Fields:
        """Of a type of event; asked once for each."""
        return cls(*(name in kind.__struct_fields__ for name in cls._fields))


class Subjects:
    """Learns from each record, in order, what later ones mean."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        """Every reference a model has ever had → its id, the latest; the last names come last."""
        self._engines: OrderedDict[str, tuple[str, str]] = OrderedDict()
        """engine → model, backend."""
        self._pulls: OrderedDict[str, str] = OrderedDict()
        """pull → reference."""
        self._fields: dict[type[Event], _Fields] = {}

    def of(self, record: Record, event: Event | None = None) -> About:
        """Whom the next record is about; `event` spares reading it again."""
        backend = record.stream.partition("/")[2] if record.stream.startswith(_STREAMS) else ""
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
        """The model and the backend of an engine; empty when nobody has said so."""
        return self._engines.get(engine_id, _NOBODY)

    def _of_event(self, event: Any, backend: str) -> About:
        """Of an event as its actor knows it: without a single look at its text."""
        kind = type(event)
        has = self._fields.get(kind)
        if has is None:
            has = self._fields[kind] = _Fields.of(kind)
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
        """The same of the raw fields of an event, whoever's it is."""
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
        """Complete it with what earlier events said, and remember what later ones need."""
        if engine:
            if model_id:
                _remember(self._engines, engine, (model_id, backend))
            else:
                model_id, known = self._engines.get(engine, _NOBODY)
                backend = backend or known
        if job and asks and references:
            _remember(self._pulls, job, references[-1])
        elif job in self._pulls:
            # A name of the catalogue means another than the one the model is stored under.
            references = (*references, self._pulls[job])
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


def _remember(into: OrderedDict[str, Any], key: str, value: Any) -> None:
    if key not in into and len(into) >= _REMEMBERED:
        into.popitem(last=False)
    into[key] = value
