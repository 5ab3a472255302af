"""Types and fields as JSON schemas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from greenroom.actors.limits import CONTEXT
from greenroom.runner.http.fields import Check, Dialogue, keep_alive
from greenroom.runner.http.openapi.operation import Fields

Schema = dict[str, Any]
REF = "#/components/schemas/{name}"
_BINARY: Schema = {"type": "string", "format": "binary"}


class Schemas:
    """The schemas of a document: those of named types are its components."""

    def __init__(self, types: Sequence[Any]) -> None:
        """`types`: all that `of` will be asked for."""
        kinds = list(dict.fromkeys(kind for one in types for kind in _parts(one)))
        found, self.components = msgspec.json.schema_components(kinds, ref_template=REF)
        self._found = dict(zip(kinds, map(_portable, found), strict=True))
        self.components = {name: _portable(one) for name, one in self.components.items()}
        self.components |= {
            one.name: request_schema(one.dialogue) for one in types if isinstance(one, Fields)
        }

    def of(self, kind: Any) -> Schema:
        """The schema of a type, of several, or of the fields of a request."""
        if isinstance(kind, tuple):
            return {"anyOf": [self.of(one) for one in kind]}
        if isinstance(kind, Fields):
            return {"$ref": REF.format(name=kind.name)}
        found: Schema = _BINARY if kind is bytes else self._found[kind]
        return found


def _parts(kind: Any) -> Iterable[Any]:
    if isinstance(kind, tuple):
        return kind
    return () if kind is bytes or isinstance(kind, Fields) else (kind,)


def request_schema(dialogue: Dialogue) -> Schema:
    """What an inference request may hold, with the fields that are ours. Others pass to the engine."""
    fields = {name: _or_nothing(schema_of(check)) for name, check in dialogue.fields.items()}
    fields["model"] = {"type": "string", "minLength": 1, "description": "A model's name or id."}
    fields["keep_alive"] = schema_of(keep_alive)
    wished = "Tokens that the request needs at least; the model is loaded again if it has less."
    fields["num_ctx"] = {"type": ["integer", "null"], "minimum": 0, "maximum": CONTEXT, "description": wished}
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
    if isinstance(schema, Mapping) and "kinds" in schema:
        return _by_type(schema["kinds"], schema["default"])
    if isinstance(schema, Mapping) and isinstance(fields := schema.get("properties"), Mapping):
        return _record(schema, fields)
    if isinstance(schema, Mapping):
        return {name: _resolved(one) for name, one in schema.items()}
    return [_resolved(one) for one in schema] if isinstance(schema, list | tuple) else schema


def _record(schema: Mapping[str, Any], fields: Mapping[str, Any]) -> Schema:
    """An object; fields that are not required may be null."""
    required = schema.get("required", ())
    told = {
        name: _resolved(one) if name in required else _or_nothing(_resolved(one))
        for name, one in fields.items()
    }
    rest = {name: one for name, one in schema.items() if name not in ("properties", "required")}
    return {**rest, "properties": told, **({"required": [*required]} if required else {})}


def _by_type(kinds: Mapping[str, Check], default: str) -> Schema:
    """An object of one of several kinds, which its `type` names."""
    return {"anyOf": [_of_type(name, schema_of(one), name == default) for name, one in kinds.items()]}


def _of_type(name: str, schema: Schema, is_default: bool) -> Schema:
    kind: Schema = {"enum": [name, None]} if is_default else {"const": name}
    required = [*schema.get("required", ())]
    properties = {"type": kind, **schema.get("properties", {})}
    told = {**schema, "type": "object", "properties": properties}
    return {**told, "required": required if is_default else ["type", *required]}


def _or_nothing(schema: Schema) -> Schema:
    """A null is the same as leaving the field out."""
    kind = schema.get("type")
    if not schema or kind == "null" or isinstance(kind, list):
        return schema
    if isinstance(kind, str) and "enum" not in schema:
        return {**schema, "type": [kind, "null"]}
    options = schema["anyOf"] if [*schema] == ["anyOf"] else [schema]
    return {"anyOf": [*options, {"type": "null"}]}


def _portable(schema: Any) -> Any:
    """With patterns as ECMA-262 has them: `$` for `\\Z`, and no halves of characters, which JSON has not."""
    if isinstance(schema, dict):
        return {
            name: one.replace(r"\Z", "$").replace(r"\ud800-\udfff", "")
            if name == "pattern" and isinstance(one, str)
            else _portable(one)
            for name, one in schema.items()
        }
    return [_portable(one) for one in schema] if isinstance(schema, list) else schema
