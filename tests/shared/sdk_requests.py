"""Requests made of the types of an official SDK: for each field one that has it, with all that it needs."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Required, Union, get_args, get_origin

import pydantic
from typing_extensions import get_type_hints, is_typeddict

_DEEP = 4
"""Objects inside of objects that are looked at."""
_UNIONS = (Union, types.UnionType)
_LISTS = (list, Iterable, Sequence)


class Field(NamedTuple):
    path: str
    """Where it stands, such as `messages[].content[].text`."""
    value: Any
    """The request's part that begins the path, with the field in it."""
    other: Any
    """The same with another value of the field, or without it where it may be left out."""


class Values:
    """What to send for fields that take more than a value of their type."""

    def __init__(self, named: Mapping[str, tuple[Any, Any]]) -> None:
        """`named`: two values for each, by the field's path, or by its end where that begins with a dot."""
        self._named = named

    def fields_of(self, kind: Any, path: str = "", above: tuple[Any, ...] = ()) -> Iterator[Field]:
        """Each field of an object, and those inside of it, with all that is required beside it."""
        hints = _hints(kind)
        least = {name: self._least(hint, _join(path, name)) for name, (hint, must) in hints.items() if must}
        for name, (hint, must) in hints.items():
            for inner, value, other in self._of(hint, _join(path, name), above):
                without = {**least, name: other} if other is not _ABSENT or must else {**least}
                if other is _ABSENT and not must:
                    without.pop(name, None)
                if other is _ABSENT and must:
                    continue  # there is only this value
                yield Field(inner, {**least, name: value}, without)

    def _of(self, hint: Any, path: str, above: tuple[Any, ...]) -> Iterator[tuple[str, Any, Any]]:
        hint = _plain(hint)
        if (found := self._given(path)) is not None:
            yield path, *found
            return
        origin = get_origin(hint)
        if origin in _UNIONS:
            for one in get_args(hint):
                if one is not type(None):
                    yield from self._of(one, path, above)
        elif origin in _LISTS:
            for inner, value, other in self._of(get_args(hint)[0], f"{path}[]", above):
                yield inner, [value], _ABSENT if other is _ABSENT else [other]
        elif origin is Literal:
            first, *rest = get_args(hint)
            yield path, first, rest[0] if rest else _ABSENT
        elif _is_object(hint):
            if not [name for name in _hints(hint) if name != "type"]:
                yield path, self._least(hint, path), _ABSENT
            if hint not in above and len(above) < _DEEP:
                yield from self.fields_of(hint, path, (*above, hint))
        elif hint in _SIMPLE:
            yield path, *_SIMPLE[hint]
        else:
            yield f"{path}.key", {"key": "x"}, {"key": "y"}

    def _least(self, hint: Any, path: str) -> Any:
        """The smallest value of a type."""
        hint = _plain(hint)
        if (found := self._given(path)) is not None:
            return found[0]
        origin, inner = get_origin(hint), get_args(hint)
        if origin in _UNIONS:
            return self._least(inner[0], path)
        if origin in _LISTS:
            return [self._least(inner[0], f"{path}[]")]
        if origin is Literal:
            return inner[0]
        if _is_object(hint):
            hints = _hints(hint).items()
            return {name: self._least(one, _join(path, name)) for name, (one, must) in hints if must}
        return _SIMPLE.get(hint, ({"key": "x"}, None))[0]

    def _given(self, path: str) -> tuple[Any, Any] | None:
        ends = (
            name for name in self._named if path == name or (name[0] == "." and f".{path}".endswith(name))
        )
        return next((self._named[name] for name in ends), None)


_ABSENT: Any = object()
_SIMPLE: dict[Any, tuple[Any, Any]] = {
    str: ("x", "y"),
    int: (2, 1),
    float: (0.5, 0.25),
    bool: (True, False),
    object: ({"key": "x"}, {"key": "y"}),
    type(None): (None, None),
}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_object(hint: Any) -> bool:
    return is_typeddict(hint) or (isinstance(hint, type) and issubclass(hint, pydantic.BaseModel))


def _hints(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The type of each field, and whether it is required."""
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True).items()
        return {name: (one, _must(one, total=kind.__total__)) for name, one in hints}
    return {name: (one.annotation, one.is_required()) for name, one in kind.model_fields.items()}


def _must(hint: Any, *, total: bool) -> bool:
    """Whether a field is required. Annotations that are texts hide this from `__required_keys__`."""
    origin = get_origin(hint)
    return origin is Required if origin in (Required, NotRequired) else total


def _plain(hint: Any) -> Any:
    """Without what only says how it is written."""
    while get_origin(hint) in (Annotated, Required, NotRequired):
        hint = get_args(hint)[0]
    return getattr(hint, "__value__", hint)
