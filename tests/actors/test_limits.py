"""Every command that can be sent is bounded: each text, number and list of it, by the one table of limits."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect as types

import greenroom.actors
from greenroom.actors import limits
from greenroom.actors.installer.messages import Ensure
from greenroom.actors.kernel.core import Command
from greenroom.actors.scheduler.messages import Configure

COMMANDS = sorted(
    {
        kind
        for module in pkgutil.walk_packages(greenroom.actors.__path__, "greenroom.actors.")
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
        if issubclass(kind, Command) and kind is not Command
    },
    key=lambda kind: kind.__name__,
)

TEXTS = ("x" * 9 * 2**20, "\ud800", "a\0b", "\x1b[2J", "\u202egpj.exe", "b\x9bc")
NUMBERS = (10**320, 2**70, -(2**70), float("nan"), float("inf"), -float("inf"))


def unbounded(of: types.Type, path: str) -> Iterator[str]:
    """The parts of a type that may be as long or as large as their sender likes; facts are our own."""
    match of:
        case types.StrType() if of.max_length is None:
            yield path
        case types.IntType() | types.FloatType() if of.ge is None or of.le is None:
            yield path
        case types.VarTupleType() | types.FrozenSetType():
            if of.max_length is None:
                yield path
            yield from unbounded(of.item_type, path)
        case types.DictType():
            if of.max_length is None:
                yield path
            yield from unbounded(of.key_type, path)
            yield from unbounded(of.value_type, path)
        case types.TupleType():
            for one in of.item_types:
                yield from unbounded(one, path)
        case types.UnionType():
            for one in of.types:
                yield from unbounded(one, path)
        case types.AnyType():
            yield path


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_command_is_bounded(kind: type[Command[Any]]) -> None:
    shape = types.type_info(kind)
    assert isinstance(shape, types.StructType)
    found = [one for field in shape.fields for one in unbounded(field.type, f"{kind.__name__}.{field.name}")]
    assert not found


def fields_of(kind: type[Command[Any]], wanted: type) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if hint is wanted or hint == wanted | None:
            yield field.name


def test_every_text_of_a_command_refuses_what_is_long_and_what_a_terminal_would_obey() -> None:
    tried = 0
    for kind in COMMANDS:
        for name in fields_of(kind, str):
            # What our own effect handlers say may have several lines, but it is bounded too.
            prose = name == "reason" or (kind.__name__, name) == ("Outcome", "body")
            for text in TEXTS[:1] if prose else TEXTS:
                assert refused(kind, name, text), f"{kind.__name__}.{name} takes {text[:20]!r}"
                tried += 1
    assert tried > 200


def test_every_number_of_a_command_refuses_what_is_too_large_or_no_number() -> None:
    tried = 0
    for kind in COMMANDS:
        for name in (*fields_of(kind, int), *fields_of(kind, float)):
            for number in NUMBERS:
                assert refused(kind, name, number), f"{kind.__name__}.{name} takes {number}"
                tried += 1
    assert tried > 50


def refused(kind: type[Command[Any]], name: str, value: Any) -> bool:
    """Whether this value of this field is what is refused, not what is missing beside it."""
    hint = typing.get_type_hints(kind, include_extras=True)[name]
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        return bool(limits.complaint(error)[1]) or "got `float`" in str(error)
    return False


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"version": "9" * 5000}, '"version" is too long: the limit is 128 characters'),
        ({"version": "1.0 && true"}, '"version" may have only letters, digits and .!+_-'),
        ({"backend": "a\nb"}, '"backend" must be one line of printable characters'),
        ({"waiter": "\ud800"}, '"waiter" must be one line of printable characters'),
        ({"repair": "perhaps"}, ""),
    ],
)
def test_a_complaint_is_a_sentence_that_names_the_field(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"backend": "mlx", **fields}, Ensure)
    assert limits.complaint(caught.value)[1] == sentence


def test_a_complaint_about_a_number_names_the_bound() -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"model_id": "m", "model_ref": "m", "context_size": 10**320}, Configure)
    assert limits.complaint(caught.value) == ("context_size", '"context_size" must be at most 134217728')


def test_flags_are_bounded_together_too() -> None:
    assert not limits.flags_complaint(("--temp", "0.5"))
    assert "128 words" in limits.flags_complaint(("-v",) * 200)
    assert "64 kB" in limits.flags_complaint(("--grammar", "x" * 40_000, "--json-schema", "y" * 40_000))


def test_what_is_escaped_is_one_short_line() -> None:
    assert limits.escaped("GET /a\r\n2026 forged \x1b[2J\x9b \ud800") == (
        r"GET /a\u000d\u000a2026 forged \u001b[2J\u009b \ud800"
    )
    assert len(limits.escaped("\n" * 10_000)) <= 200
    assert limits.escaped("größer als 模型.gguf") == "größer als 模型.gguf"
