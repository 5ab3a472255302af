"""Types and fields as JSON schemas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from greenroom.runner.http.fields import Check, Dialogue

Schema = dict[str, Any]
REF = "#/components/schemas/{name}"
_BINARY: Schema = {"type": "string", "format": "binary"}


class Schemas:
    """The schemas of a document: those of named types are its components."""

    def __init__(self, types: Iterable[Any]) -> None:
        """`types`: all that `of` will be asked for."""
        kinds = list(dict.fromkeys(kind for one in types for kind in _parts(one)))
        found, self.components = msgspec.json.schema_components(kinds, ref_template=REF)
        self._found = dict(zip(kinds, map(_portable, found), strict=True))
        self.components = {name: _portable(one) for name, one in self.components.items()}

    def of(self, kind: Any) -> Schema:
        """The schema of a type, of several, or of the fields of a request."""
        if isinstance(kind, tuple):
            return {"anyOf": [self.of(one) for one in kind]}
        if isinstance(kind, Dialogue):
            return request_schema(kind)
        found: Schema = _BINARY if kind is bytes else self._found[kind]
        return found


def _parts(kind: Any) -> Iterable[Any]:
    if isinstance(kind, tuple):
        return kind
    return () if kind is bytes or isinstance(kind, Dialogue) else (kind,)


def request_schema(dialogue: Dialogue) -> Schema:
    """What an inference request may hold, with the fields that are ours. Others pass to the engine."""
    fields = {name: _or_nothing(schema_of(check)) for name, check in dialogue.fields.items()}
    fields["model"] = {"type": "string", "minLength": 1, "description": "A model's name or id."}
    fields["keep_alive"] = {
        "type": ["string", "number", "null"],
        "description": "How long the model stays loaded: `30m`, seconds, or negative forever.",
    }
    for name in dialogue.required:
        fields[name] = schema_of(dialogue.fields[name])
    return {"type": "object", "properties": fields, "required": ["model", *dialogue.required]}


def schema_of(check: Check) -> Schema:
    """What a check accepts; anything, where it does not say."""
    found: Schema = _resolved(getattr(check, "schema", {}))
    return found


def _resolved(schema: Any) -> Any:
    """With a schema in place of each check."""
    if callable(schema):
        return schema_of(schema)
    if isinstance(schema, Mapping):
        return {name: _resolved(one) for name, one in schema.items()}
    return [_resolved(one) for one in schema] if isinstance(schema, list | tuple) else schema


def _or_nothing(schema: Schema) -> Schema:
    """A null is the same as leaving the field out."""
    if isinstance(kind := schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [kind, "null"]}
    return {"anyOf": [schema, {"type": "null"}]} if schema else schema


def _portable(schema: Any) -> Any:
    """With patterns as ECMA-262 has them, where `\\Z` is `$`."""
    if isinstance(schema, dict):
        return {
            name: re.sub(r"\\Z$", "$", one) if name == "pattern" and isinstance(one, str) else _portable(one)
            for name, one in schema.items()
        }
    return [_portable(one) for one in schema] if isinstance(schema, list) else schema
