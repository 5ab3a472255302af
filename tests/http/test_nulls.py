"""null stands for a field that is left out, on every route."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest

import greenroom.runner.http as front
from greenroom.runner.http.bodies import fitted
from greenroom.runner.http.engine_requests import routing_of
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.fields import Dialogue
from greenroom.runner.http.wrong_fields import Wrong

MODULES = [
    importlib.import_module(one.name) for one in pkgutil.walk_packages(front.__path__, f"{front.__name__}.")
]
BODIES = {
    name: kind
    for module in MODULES
    for name, kind in vars(module).items()
    if name.endswith("Body") and isinstance(kind, type) and issubclass(kind, msgspec.Struct)
}
DIALOGUES = {
    f"{module.__name__.removeprefix(front.__name__ + '.')}.{name}": one
    for module in MODULES
    for name, one in vars(module).items()
    if isinstance(one, Dialogue)
}


@pytest.mark.parametrize("name", sorted(BODIES))
def test_a_body_of_nulls_is_the_same_as_an_empty_one(name: str) -> None:
    kind = BODIES[name]
    fields = [one.encode_name for one in msgspec.structs.fields(kind)]
    body = msgspec.json.encode(dict.fromkeys(fields))
    unknown: list[str] = []
    assert decoded(fitted(body, kind, {}, unknown), kind) == decoded(b"{}", kind)
    assert unknown == []


def decoded(body: bytes, kind: type[Any]) -> Any:
    """What it says, or what is missing."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        return str(error)


def test_every_struct_that_a_route_reads_is_among_these() -> None:
    read = {
        word
        for module in MODULES
        for part in inspect.getsource(module).split("read_json(request, ")[1:]
        if (word := part.replace(")", ",").partition(",")[0])
    }
    assert len(read) > 10
    assert read <= set(BODIES)


def records(check: Any, seen: set[int]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Checks of objects with fields of their own that a check is made of, each with its fields."""
    if isinstance(check, Mapping):
        parts = list(check.values())
    elif isinstance(check, tuple | list):
        parts = list(check)
    elif callable(check) and id(check) not in seen:
        seen.add(id(check))
        inside = inspect.getclosurevars(check).nonlocals if inspect.isfunction(check) else {}
        if {"fields", "required"} <= inside.keys():
            yield check, inside["fields"]
        parts = list(inside.values())
    else:
        parts = []
    for part in parts:
        yield from records(part, seen)


@pytest.mark.parametrize("name", sorted(DIALOGUES))
def test_nulls_in_a_request_are_the_same_as_fields_that_are_left_out(name: str) -> None:
    found = list(records(DIALOGUES[name].fields, set()))
    for check, fields in found:
        kept = inspect.getclosurevars(check).nonlocals["nulls"]
        nulls = dict.fromkeys(fields)
        said = [outcome(check, body, kept) for body in ({}, nulls, {"of a newer version": None})]
        assert said[0] == said[1] == said[2]


def outcome(check: Any, body: Mapping[str, Any], kept: Any) -> Any:
    """What a check makes of a body, or what it says is missing."""
    try:
        return {name: one for name, one in check(dict(body), "x").items() if name not in kept}
    except Wrong as wrong:
        return wrong.code, str(wrong)


def test_a_model_that_is_null_is_missing() -> None:
    with pytest.raises(HttpRefusal) as refused:
        routing_of(b'{"model": null, "keep_alive": null}')
    assert refused.value.refusal.code == "model_required"
