"""Checks for the fields of a request: what a value may be, said once, with a sentence for what it is not.

A check takes a value and the path where it stands. It returns the value, or a copy of it without the nulls
that stand for "left out"; it raises Wrong. Sentences name paths and what was expected, never the value: a
value is the client's own text and may be long or secret.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

Check = Callable[[Any, str], Any]

_INT32 = 2**31 - 1


class Wrong(Exception):
    """A field that is not what it must be."""

    def __init__(self, where: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.where = where
        self.code = code


def wrong_type(where: str, expected: str, value: object) -> Wrong:
    """The value is of another type."""
    return Wrong(where, f"{where} must be {expected}, not {_named(value)}.", "invalid_type")


def missing(where: str) -> Wrong:
    """A field that must be there is not."""
    return Wrong(where, f"{where} is required.", "missing_required_parameter")


def text(least: int = 0, most: int | None = None) -> Check:
    """A string of so many characters."""

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, str):
            raise wrong_type(where, "a string", value)
        if len(value) < least:
            raise Wrong(where, f"{where} must not be empty.")
        if most is not None and len(value) > most:
            raise Wrong(where, f"{where} has {len(value)} characters; the limit is {most}.")
        return value

    return check


def flag(value: Any, where: str) -> Any:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong_type(where, "true or false", value)
    return value


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """A finite number in a range."""

    def check(value: Any, where: str) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(where, "a number", value)
        if not math.isfinite(value) or not least <= value <= most:
            raise Wrong(where, f"{where} must be {_range(least, most)}.")
        return value

    return check


def whole(least: int = -(2**63), most: int = 2**63 - 1) -> Check:
    """A whole number in a range; `5.0` is one, and passed on as 5."""

    def check(value: Any, where: str) -> Any:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(where, "a whole number", value)
        if not least <= value <= most:
            raise Wrong(where, f"{where} must be {_range(least, most)}.")
        return value

    return check


count = whole(1, _INT32)
_token = whole(0, _INT32)


def tokens(value: Any, where: str) -> Any:
    """A list of token ids, at least one."""
    if not isinstance(value, list):
        raise wrong_type(where, "a list", value)
    # There may be a hundred thousand: each is looked at more closely only where one is wrong.
    if not value or not all(type(one) is int and 0 <= one <= _INT32 for one in value):
        return array(_token, least=1)(value, where)
    return value


def one_of(*words: str) -> Check:
    """One of a few words."""

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, str):
            raise wrong_type(where, "a string", value)
        if value not in words:
            raise Wrong(where, f"{where} must be one of {', '.join(words)}.")
        return value

    return check


def any_object(value: Any, where: str) -> Any:
    """An object whose content is not ours to judge, such as a JSON schema; nulls in it stay."""
    if not isinstance(value, dict):
        raise wrong_type(where, "an object", value)
    return value


def array(of: Check, least: int = 0, most: int | None = None) -> Check:
    """A list of so many items, each of which passes a check."""

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise wrong_type(where, "a list", value)
        if len(value) < least:
            raise Wrong(where, f"{where} must not be empty.")
        if most is not None and len(value) > most:
            raise Wrong(where, f"{where} has {len(value)} items; the limit is {most}.")
        cleaned: list[Any] | None = None
        for index, item in enumerate(value):
            clean = of(item, f"{where}[{index}]")
            if clean is not item:
                cleaned = list(value) if cleaned is None else cleaned
                cleaned[index] = clean
        return value if cleaned is None else cleaned

    return check


def record(
    fields: Mapping[str, Check],
    required: Collection[str] = (),
    then: Callable[[dict[str, Any], str], None] | None = None,
) -> Check:
    """An object with these fields. Others pass as they are; null is the same as leaving a field out.

    `then` looks at the fields together.
    """

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise wrong_type(where, "an object", value)
        value = cleaned(value, fields, f"{where}." if where else "")
        for name in required:
            if name not in value:
                raise missing(f"{where}.{name}" if where else name)
        if then is not None:
            then(value, where)
        return value

    return check


def cleaned(value: dict[str, Any], fields: Mapping[str, Check], prefix: str = "") -> dict[str, Any]:
    """The fields of an object, checked and without nulls; the same object if nothing had to change."""
    result = value
    for name, item in value.items():
        if item is None:
            result = dict(value) if result is value else result
            del result[name]
        elif (of := fields.get(name)) is not None and (clean := of(item, f"{prefix}{name}")) is not item:
            result = dict(value) if result is value else result
            result[name] = clean
    return result


def by_type(kinds: Mapping[str, Check], what: str, *, default: str = "") -> Check:
    """An object whose `type` says which check is its own; without a `default` it must have one."""

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise wrong_type(where, "an object", value)
        kind = value.get("type")
        if kind is None:
            if not default:
                raise missing(f"{where}.type")
            kind = default
        if not isinstance(kind, str):
            raise wrong_type(f"{where}.type", "a string", kind)
        if kind not in kinds:
            known = ", ".join(kinds)
            raise Wrong(
                f"{where}.type",
                f"{where}.type is not a {what} that this server supports; use one of {known}.",
            )
        return kinds[kind](value, where)

    return check


def either(expected: str, *ways: tuple[type, Check]) -> Check:
    """One of several types, each with a check of its own."""

    def check(value: Any, where: str) -> Any:
        for kind, way in ways:
            if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
                return way(value, where)
        raise wrong_type(where, expected, value)

    return check


def _named(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "null" if value is None else kinds.get(type(value), "an object")


def _range(least: float, most: float) -> str:
    if abs(least) >= _INT32 and most >= _INT32:
        return "a number that fits into 64 bits"
    if most >= _INT32:
        return f"at least {least:g}"
    return f"from {least:g} to {most:g}"
