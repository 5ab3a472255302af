"""Schemas that would keep llama.cpp at work for minutes, and the widest that it takes."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.backends.schema_width import NEXT, OBJECTS, PROPERTIES, is_too_wide

TEXT = {"type": "string"}
THREE_WAYS = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 3} for n in range(30)}


def enum(size: int) -> dict[str, Any]:
    return {"enum": [f"value {n}" for n in range(size)]}


def properties(size: int, required: int = 0) -> dict[str, Any]:
    names = [f"p{n}" for n in range(size)]
    return {"type": "object", "properties": dict.fromkeys(names, TEXT), "required": names[:required]}


@pytest.mark.parametrize(
    "schema",
    [
        enum(NEXT + 1),
        properties(NEXT + 1),
        properties(NEXT + 9, required=8),
        properties(PROPERTIES + 1, required=PROPERTIES + 1),
        {"anyOf": [TEXT] * (NEXT + 1)},
        {"type": "string", "pattern": f"^{'[a-z]?' * (NEXT + 1)}$"},
        {"type": "string", "pattern": f"^({'a|' * (NEXT + 1)}b)$"},
        {"type": "array", "items": {"properties": {"a": {"oneOf": [enum(300), enum(300)]}}}},
        {"anyOf": [{"$ref": "#/$defs/~0a~1b"}] * 2, "$defs": {"~a/b": enum(300)}},
        {"$ref": "#/$defs/a0", "$defs": {**THREE_WAYS, "a30": TEXT}},
        {"default": [{}] * OBJECTS},
    ],
)
def test_a_schema_that_allows_too_much_in_one_place_is_too_wide(schema: Any) -> None:
    assert is_too_wide(schema)


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {},
        enum(NEXT),
        properties(NEXT),
        properties(PROPERTIES, required=PROPERTIES),
        {"type": "object", "properties": {f"p{n}": enum(400) for n in range(50)}},
        {"type": "string", "pattern": f"^{'[a-z]?' * NEXT}{'a' * 9000}$"},
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, TEXT]}}},
        {
            "$ref": "https://example.org/other.json#/a",
            "enum": 7,
            "required": [3],
            "properties": [],
            "anyOf": {},
        },
        {"properties": {"enum": TEXT, "$ref": {"type": "integer"}, "anyOf": TEXT}},
    ],
)
def test_other_schemas_are_not(schema: Any) -> None:
    assert not is_too_wide(schema)


def test_llama_cpp_refuses_one_wherever_it_is_named() -> None:
    cannot = BACKENDS["llama.cpp"].dialect.cannot

    def refused(**fields: Any) -> list[str]:
        return [one.param for one in cannot if one.code == "invalid_schema" and one.asked(fields)]

    wide = enum(NEXT + 1)
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": wide}}
    assert refused(response_format=form) == ["response_format"]
    assert refused(response_format={"type": "json_object", "schema": wide}) == ["response_format"]
    assert refused(json_schema=wide) == ["json_schema"]
    assert refused(tools=[{"type": "function", "function": {"name": "f", "parameters": wide}}]) == ["tools"]
    assert (
        refused(tools=[{"type": "function", "function": {"name": "f"}}], response_format={"type": "text"})
        == []
    )
