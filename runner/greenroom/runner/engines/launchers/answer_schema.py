"""The JSON schema that an answer must follow, out of a request's body. Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_OBJECT: Mapping[str, Any] = {"type": "object"}
_ONE = frozenset(
    "items additionalItems additionalProperties unevaluatedItems unevaluatedProperties contains propertyNames"
    " not if then else".split()
)
_SEVERAL = frozenset("anyOf oneOf allOf prefixItems items".split())
_NAMED = frozenset("properties patternProperties $defs definitions dependentSchemas".split())
"""Keywords with a schema, with a list of schemas, with an object of schemas."""
_COMBINING = frozenset("anyOf oneOf allOf $ref $dynamicRef if not dependentSchemas".split())
_OPEN = frozenset("additionalProperties patternProperties unevaluatedProperties".split())
"""Keywords that say whether there are other properties."""
_NOTES = frozenset("title description default examples $comment x-guidance".split())
"""Keywords that no answer depends on, and one that would change how the library works."""
_STRING = 10_000
"""Characters of a string that an answer must contain, or of a pattern: the time of a token grows with its
square."""
_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
"""Formats that can be enforced. Others are annotations, which may be ignored."""

_BEGUN = re.compile(
    r"""\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?P<arguments>\{.*)""",
    re.DOTALL,
)
"""The beginning of a call."""


def schema_of(body: Mapping[str, Any]) -> Any:
    """The schema that a chat's or a completion's answer must follow; None if it is free."""
    form = body.get("response_format") or {}
    kind = form.get("type", "text")
    if kind == "text":
        return (body["json_schema"] or _OBJECT) if isinstance(body.get("json_schema"), dict) else None
    asked = form.get("json_schema") or {} if kind == "json_schema" else form
    return asked.get("schema") or _OBJECT


def must_call(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The functions of which a chat must call one; empty if it need not."""
    choice = body.get("tool_choice", "auto")
    functions = [tool["function"] for tool in body.get("tools") or ()]
    if isinstance(choice, dict):
        return [one for one in functions if one["name"] == choice["function"]["name"]]
    return functions if choice == "required" else []


def call_schema(functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of a call, `{"name", "arguments"}`, of one of these functions."""
    defined: dict[str, Any] = {}
    calls = []
    for number, one in enumerate(functions):
        arguments: Any = one.get("parameters") or _OBJECT
        if '"$ref"' in json.dumps(arguments):
            # Its references start at the root, which is elsewhere now.
            place = f"tool{number}"
            defined[place] = _moved(arguments, f"#/$defs/{place}")
            arguments = {"$ref": f"#/$defs/{place}"}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": one["name"]}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**schema, "$defs": defined} if defined else schema


def called(text: str, _: Any = None) -> dict[str, Any]:
    """A call that was written by that schema. Of one that was cut off, `arguments` is the text that there is.

    Raises:
        ValueError: It was cut off before its arguments.
    """
    try:
        call: dict[str, Any] = json.loads(text)
    except ValueError:
        if (begun := _BEGUN.match(text)) is None:
            raise
        return {"name": json.loads(begun["name"]), "arguments": begun["arguments"]}
    return {"name": call["name"], "arguments": call["arguments"]}


def unquoted(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call as mlx-lm formats it, which makes JSON of the text of `arguments` too."""
    function = call["function"]
    if not function["arguments"].startswith('"'):
        return call
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}


def narrowed(schema: Any) -> Any:
    """The same schema without what cannot be enforced and need not be, and without surprises.

    Where properties are listed, an answer has no others, as on llama.cpp: a small model goes on inventing
    some for as long as it may. Not where schemas are combined: what one does not list another may.

    Raises:
        ValueError: A string in it is too long.
    """
    closed = not any(_combines(one) for one in _within(schema))
    made = _narrowed(schema, closed)
    left = [made]
    while left:
        one = left.pop()
        if isinstance(one, str) and len(one) > _STRING:
            raise ValueError("a string in the schema is too long")
        left += [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else ()
    return made


def _narrowed(schema: Any, closed: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for word, value in schema.items():
        if word in _NOTES or (word == "format" and value not in _FORMATS):
            continue
        if word in _NAMED and isinstance(value, dict):
            made[word] = {name: _narrowed(one, closed) for name, one in value.items()}
        elif word in _SEVERAL and isinstance(value, list):
            made[word] = [_narrowed(one, closed) for one in value]
        else:
            made[word] = _narrowed(value, closed) if word in _ONE else value
    if closed and "properties" in made and _OPEN.isdisjoint(made):
        made["additionalProperties"] = False
    return made


def _within(schema: Any) -> Iterator[Mapping[str, Any]]:
    """It and all schemas in it."""
    left = [schema]
    while left:
        one = left.pop()
        if not isinstance(one, dict):
            continue
        yield one
        for word, value in one.items():
            if word in _NAMED and isinstance(value, dict):
                left += value.values()
            elif word in _SEVERAL and isinstance(value, list):
                left += value
            elif word in _ONE:
                left.append(value)


def _combines(schema: Mapping[str, Any]) -> bool:
    return len(schema.get("allOf") or ()) > 1 or (
        "properties" in schema and not _COMBINING.isdisjoint(schema)
    )


def _moved(schema: Any, root: str) -> Any:
    if isinstance(schema, list):
        return [_moved(one, root) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: root + value[1:]
        if name == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, root)
        for name, value in schema.items()
    }
