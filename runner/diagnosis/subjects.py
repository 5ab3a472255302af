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

_REMEMBERED = 20_000
"""Engines and jobs; older ones are told of by nothing any more."""
_STREAMS = ("install/", "runner/")

_decode = msgspec.json.Decoder().decode


class About(NamedTuple):
    """Whom one event concerns. Models by id, and by reference where it has no id yet."""

    models: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    """Canonical references the event itself has: a model's tags, what is pulled, what a load was asked by."""
    backends: tuple[str, ...] = ()
    engine: str = ""
    job: str = ""


class Subjects:
    """Learns from each record, in order, what later ones mean."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        """Every reference a model has ever had → its id, the latest."""
        self._engines: OrderedDict[str, tuple[str, str]] = OrderedDict()
        """engine → model, backend."""
        self._pulls: OrderedDict[str, str] = OrderedDict()
        """pull → reference."""

    def of(self, record: Record) -> About:
        """Whom the next record is about."""
        try:
            fields = _decode(record.data)
        except msgspec.DecodeError:
            fields = None
        backend = record.stream.partition("/")[2] if record.stream.startswith(_STREAMS) else ""
        if not isinstance(fields, dict):
            return About(backends=(backend,) if backend else ())
        return self._of(record.type, fields, backend)

    def engine(self, engine_id: str) -> tuple[str, str]:
        """The model and the backend of an engine; empty when nobody has said so."""
        return self._engines.get(engine_id, ("", ""))

    def _of(self, kind: str, fields: Mapping[str, Any], backend: str) -> About:
        spec = _mapping(fields, "spec")
        model = _mapping(fields, "model")
        inner = _mapping(fields, "installation")
        engine = _text(fields, "engine_id") or _text(spec, "engine_id")
        model_id = _text(fields, "model_id") or _text(spec, "model_id") or _text(model, "id")
        backend = backend or _text(fields, "backend") or _text(spec, "backend") or _text(inner, "backend")
        job = _text(fields, "job")
        references = {
            _text(fields, "model_ref") or _text(spec, "model_ref"),
            _text(fields, "reference"),
            *_texts(model, "tags"),
            *_texts(fields, "tags"),
        } - {""}
        if engine and model_id:
            _remember(self._engines, engine, (model_id, backend))
        elif engine:
            model_id, known = self.engine(engine)
            backend = backend or known
        if model_id:
            self.names.update(dict.fromkeys(references, model_id))
        if kind == "pull_requested":
            _remember(self._pulls, job, _text(fields, "reference"))
        elif job in self._pulls:
            references.add(self._pulls[job])
            if model_id:
                # A name of the catalogue means another than the one the model is stored under.
                self.names[self._pulls[job]] = model_id
        models = {model_id, self.names.get(_text(fields, "in_favour_of"), "")} - {""}
        return About(
            models=tuple(sorted(models)),
            references=tuple(sorted(references)),
            backends=(backend,) if backend else (),
            engine=engine,
            job=job,
        )


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
    into[key] = value
    if len(into) > _REMEMBERED:
        into.popitem(last=False)
