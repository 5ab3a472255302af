"""Answers that mlx is made to give: by a JSON schema, with a call, without one; with a tiny vocabulary."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenroom.runner.engines.launchers import answer_schema, grammars
from greenroom.runner.engines.launchers.grammars import NOT_ENFORCED, TOO_COMPLEX, UNUSABLE, Grammars

jsonschema_rs: Any = importlib.import_module("jsonschema_rs")
# As the launcher itself imports it.
held_answer: Any = sys.modules["held_answer"]

WORDS = [b'{"', b'":', b'", "', b"<think>", b"  \n\n\t", b"true", b"123", b"caf\xc3\xa9", b"\xf0\x9f"]
END, OTHER_END = 256, 257
TOKENS = [*(bytes([one]) for one in range(256)), b"<end>", b"<stop>", *WORDS]


class Vocabulary:
    """Each byte, two ends, and some words."""

    eos_token_id = END
    bos_token_id = None
    tokens = TOKENS
    special_token_ids = (END, OTHER_END)

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def make_tokenizer(_: Any, library: Any) -> Any:
    wrapper: Any = importlib.import_module("llguidance._tokenizer").TokenizerWrapper(Vocabulary())
    return library.LLTokenizer(wrapper, eos_token=[END, OTHER_END])


MLX = SimpleNamespace(eos_token_ids={END, OTHER_END})
GRAMMARS = Grammars(make_tokenizer)


def held(schema: Any) -> Any:
    return GRAMMARS.held(schema, MLX)


def refused(schema: Any) -> str:
    with pytest.raises(grammars.NoGrammar) as it:
        held(schema)
    return str(it.value)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "discriminator": {}},
        "born": {"type": "string", "format": "date"},
        "note": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-c]{1,4}$"}]},
        "tags": {"type": "array", "items": {"enum": ["a", 1, None, {"b": [2.5]}]}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "born", "note", "tags"],
    "$defs": {
        "cat": {"type": "object", "properties": {"is": {"const": "cat"}}, "required": ["is"]},
        "dog": {"type": "object", "properties": {"is": {"const": "dog"}}, "required": ["is"]},
    },
}
SCHEMAS = [
    PERSON,
    {"enum": ["yes", "no", 5]},
    {"type": "number", "minimum": -1, "maximum": 1, "multipleOf": 0.25},
    {"type": "array", "prefixItems": [{"type": "boolean"}], "items": {"type": "null"}, "maxItems": 3},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "of my own", "maxLength": 3},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 1},
]


def written(answer: Any, choose: Callable[[list[int]], int]) -> str:
    """The answer, if each token is chosen from those that may be next."""
    text = b""
    for _ in range(2000):
        mask = answer.allowed()
        token = choose([one for one in range(len(TOKENS)) if mask[one]])
        answer.saw(token)
        if token in (END, OTHER_END):
            assert answer.over
            return text.decode()
        text += TOKENS[token]
    raise AssertionError(f"no end after {text!r}")


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_whatever_a_model_prefers_its_answer_is_valid(schema: Any) -> None:
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    chance = random.Random(7)
    for _ in range(15):
        text = written(held(schema), chance.choice)
        assert validator.is_valid(json.loads(text)), text


@pytest.mark.parametrize("love", [b" ", b"\n", b"  \n\n\t", b"\t"])
def test_a_model_that_loves_spaces_still_comes_to_an_end(love: bytes) -> None:
    loved = TOKENS.index(love)
    chance = random.Random(3)
    text = written(held(PERSON), lambda may: loved if loved in may else chance.choice(may))
    assert set(json.loads(text)) == set(PERSON["properties"])


def test_the_answer_begins_where_the_thoughts_end() -> None:
    answer = held({"enum": ["yes"]})
    thought = b""

    def thinks(token: int) -> str | None:
        nonlocal thought
        thought += TOKENS[token]
        _, end, said = thought.decode().partition("</think>")
        return said if end else None

    answer.thinks = thinks
    for one in b"no {} </think>":
        assert answer.allowed() is None, "anything but an end"
        answer.saw(one)
    assert written(answer, min) == '"yes"'


def test_what_was_said_in_the_same_breath_as_the_last_thought_counts() -> None:
    answer = held({"enum": ["yes"]})
    answer.thinks = lambda _: ' \n"y'
    answer.saw(5)
    assert written(answer, min) == 'es"'


def test_a_call_may_take_the_place_of_the_answer_and_stands_nowhere_in_it() -> None:
    call = TOKENS.index(b"<think>")
    text = {"type": "string", "maxLength": 9}
    answer = held(text)
    assert not answer.allowed()[call]
    answer.saw(ord('"'))
    assert answer.allowed()[call]
    answer = held(text)
    answer.instead = {call}
    assert answer.allowed()[call]
    answer.saw(ord('"'))
    assert not answer.allowed()[call]
    answer = held(text)
    answer.instead = {call}
    answer.saw(call)
    assert answer.over
    answer.saw(ord("}"))


def test_a_token_that_must_not_be_there_is_noticed() -> None:
    answer = held({"enum": ["yes"]})
    with pytest.raises(held_answer.Strayed):
        answer.saw(TOKENS.index(b"{"))


def test_an_answer_that_grows_too_complex_is_given_up() -> None:
    answer = held({"type": "string", "pattern": "^(.*a.{15}){10}$"})
    chance = random.Random(1)
    with pytest.raises(held_answer.Strayed):
        written(answer, lambda may: chance.choice([one for one in b"ab" if one in may] or may))


def of_many(count: int, schema: Callable[[str], Any], last: Any) -> Any:
    """Definitions of which each refers to the next."""
    defined = {f"a{n}": schema(f"#/$defs/a{n + 1}") for n in range(count)}
    return {"$ref": "#/$defs/a0", "$defs": {**defined, f"a{count}": last}}


def deep(levels: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


NO_ANSWER: dict[str, tuple[Any, str]] = {
    "a type": ({"type": "banana"}, UNUSABLE),
    "a reference": ({"$ref": "#/$defs/absent"}, UNUSABLE),
    "an address": ({"$ref": "https://example.org/schema"}, UNUSABLE),
    "a pattern": ({"type": "string", "pattern": "["}, UNUSABLE),
    "a contradiction": ({"allOf": [{"type": "string"}, {"type": "null"}]}, UNUSABLE),
    "a keyword": ({"type": "array", "uniqueItems": True}, NOT_ENFORCED.format("uniqueItems")),
    "a negation": ({"not": {"type": "null"}}, NOT_ENFORCED.format("not")),
    "one of two": ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, NOT_ENFORCED.format("oneOf")),
    "a number of properties": (
        {"properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2},
        NOT_ENFORCED.format("minProperties"),
    ),
    "a long word": ({"anyOf": [{"type": "null"}, {"const": ["x" * 10_001]}]}, TOO_COMPLEX),
    "a long name": ({"properties": {"x" * 10_001: {}}}, TOO_COMPLEX),
    "deep": (deep(150), TOO_COMPLEX),
    "very deep": (deep(2000), TOO_COMPLEX),
    "large": ({"enum": [f"value {n}" for n in range(100_000)]}, TOO_COMPLEX),
    "a long way": (of_many(5000, lambda to: {"items": {"$ref": to}, "type": "array"}, {}), TOO_COMPLEX),
}


@pytest.mark.parametrize("name", NO_ANSWER)
def test_a_schema_that_no_answer_can_be_held_to_is_refused(name: str) -> None:
    schema, why = NO_ANSWER[name]
    assert refused(schema) == why


@pytest.mark.slow
@pytest.mark.parametrize(
    "schema",
    [
        of_many(30, lambda to: {"allOf": [{"$ref": to}] * 3}, {"type": "string", "pattern": "a+"}),
        {"allOf": [{"type": "string", "pattern": f"a.*{n}.*b|c.*{n}"} for n in range(30)]},
    ],
    ids=["gigabytes", "minutes"],
)
def test_a_schema_that_takes_minutes_or_gigabytes_is_given_up_in_seconds(schema: Any) -> None:
    assert refused(schema) == TOO_COMPLEX
    assert held({"enum": ["yes"]}).allowed()


def test_properties_that_are_not_listed_are_left_out_where_no_other_schema_may_list_them() -> None:
    listed = {"type": "object", "properties": {"format": {"type": "string", "format": "cuid"}}}
    closed = {
        "type": "object",
        "properties": {"format": {"type": "string"}},
        "additionalProperties": False,
    }
    narrowed = answer_schema.narrowed
    assert narrowed(listed) == closed
    assert narrowed({"anyOf": [listed, {"enum": [listed]}]}) == {"anyOf": [closed, {"enum": [listed]}]}
    noted = {"x-guidance": {"lenient": True}, "description": "x" * 20_000, "$defs": {"title": listed}}
    assert narrowed(noted) == {"$defs": {"title": closed}}
    still_open: list[Any] = [
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}, {}]},
        {"properties": {"a": {}}, "additionalProperties": True},
        {"properties": {"a": {}}, "patternProperties": {"b": {}}},
    ]
    assert [narrowed(one) for one in still_open] == still_open


def test_a_request_says_what_its_answer_must_be() -> None:
    schema = {"type": "string"}
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for body, expected in [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"type": "object"}),
        ({"response_format": {"type": "json_object", "schema": schema}}, schema),
        ({"response_format": named}, schema),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, {"type": "object"}),
        ({"json_schema": schema}, schema),
        ({"json_schema": {}}, {"type": "object"}),
    ]:
        assert answer_schema.schema_of(body) == expected, body  # type: ignore[arg-type]
    one, two = {"name": "one"}, {"name": "two"}
    tools = [{"type": "function", "function": function} for function in (one, two)]
    chosen = {"type": "function", "function": {"name": "two"}}
    for choice, functions in [("auto", []), ("none", []), ("required", [one, two]), (chosen, [two])]:
        assert answer_schema.must_call({"tools": tools, "tool_choice": choice}) == functions
    assert answer_schema.must_call({"tools": tools}) == []


def test_of_a_call_that_is_cut_off_there_are_the_arguments_so_far() -> None:
    called, unquoted = answer_schema.called, answer_schema.unquoted
    whole = '{"name": "a\\"b", "arguments": {"x": 1}}'
    assert called(whole) == {"name": 'a"b', "arguments": {"x": 1}}
    assert called(whole[:-3]) == {"name": 'a"b', "arguments": '{"x": '}
    for text in (whole[:20], ""):
        with pytest.raises(ValueError, match=r"line 1|Expecting"):
            called(text)
    made = {"type": "function", "id": "1", "function": {"name": "w", "arguments": '"{\\"x\\": "'}}
    assert unquoted(made) == {**made, "function": {"name": "w", "arguments": '{"x": '}}
    plain = {**made, "function": {"name": "w", "arguments": "{}"}}
    assert unquoted(plain) is plain


def test_with_mlx_itself(mlx_python: Path, programs: Path) -> None:
    """What touches mlx runs in its own environment: each of these sentences holds there."""
    done = subprocess.run(
        [mlx_python, programs / "mlx_answers.py"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "only tokens that may follow are likely, in any width and in 16 bits",
        "before the answer only an end is unlikely",
        "what fails fails once, and no other answer",
        "an answer may hold what elsewhere begins a thought or a call",
        "a thought is no part of the answer, and a stop word ends it",
        "a call is read as one",
        "a tool may be called instead",
        "an answer without calls shows what would be one",
    ]


def test_without_the_library_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert refused({}) == grammars.MISSING
