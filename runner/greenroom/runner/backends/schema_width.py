"""How many continuations a JSON schema allows at any point of an answer.

llama.cpp compares them pair by pair for each token: ten thousand of them block it for minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

NEXT = 500
"""The most continuations; llama.cpp takes about half a second a token for so many."""
PROPERTIES = 10_000
"""Properties of one object: with ten times as many, making a grammar takes it minutes."""
OBJECTS = 50_000
"""Objects in a schema."""
_LEVELS = 50
"""Of alternatives within alternatives that are added up; each level is looked at by itself too."""
_ALTERNATIVES = ("anyOf", "oneOf", "allOf")
_MAYBE = re.compile(r"[?*|{]")
"""In a pattern: optional parts and alternatives add continuations."""


def is_too_wide(schema: Any) -> bool:
    """Whether more than `NEXT` things may come next anywhere, or there is too much of it.

    Takes a tenth of a second at most, in which the front door does nothing else.
    """
    objects: list[Mapping[str, Any]] = []
    named, refers = 0, False
    for one in _objects_in(schema):
        objects.append(one)
        if len(objects) > OBJECTS or len(_mapping(one.get("properties"))) > PROPERTIES:
            return True
        lists = [len(_list(one.get(word))) for word in (*_ALTERNATIVES, "enum")]
        if max(lists) > NEXT:
            return True
        named += sum(lists) + len(_mapping(one.get("properties"))) + _maybe_in(one)
        refers = refers or "$ref" in one
    # Without references a place has no more than there are in all: most schemas are done with here.
    if named <= NEXT and not refers:
        return False
    known: dict[int, int] = {}
    return any(_width(one, schema, known, _LEVELS) > NEXT for one in objects)


def _width(schema: Any, root: Any, known: dict[int, int], levels: int) -> int:
    """How many continuations this schema allows at its beginning."""
    if not isinstance(schema, dict) or not levels:
        return 1
    if (found := known.get(id(schema))) is not None:
        return found
    known[id(schema)] = 1  # references may come back to it
    alternatives = [one for word in _ALTERNATIVES for one in _list(schema.get(word))]
    if isinstance(reference := schema.get("$ref"), str):
        alternatives.append(_referred(reference, root))
    width = sum(_width(one, root, known, levels - 1) for one in alternatives)
    properties = _mapping(schema.get("properties"))
    needed = {one for one in _list(schema.get("required")) if isinstance(one, str) and one in properties}
    # Properties that are required have one order. After them any of the others may come.
    width += len(_list(schema.get("enum"))) + len(properties) - len(needed) + _maybe_in(schema)
    known[id(schema)] = max(1, width)
    return known[id(schema)]


def _maybe_in(schema: Mapping[str, Any]) -> int:
    pattern = schema.get("pattern")
    return len(_MAYBE.findall(pattern)) if isinstance(pattern, str) else 0


def _referred(reference: str, root: Any) -> Any:
    """What a reference within a schema leads to; None for others."""
    where, _, path = reference.partition("#")
    found = None if where else root
    for name in path.split("/")[1:]:
        found = _mapping(found).get(name.replace("~1", "/").replace("~0", "~"))
    return found


def _objects_in(schema: Any) -> Iterator[Mapping[str, Any]]:
    left = [schema]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            left += one.values()
            yield one


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
