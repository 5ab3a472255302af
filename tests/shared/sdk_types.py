"""Streams of events, and answers checked against the types of an official SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pydantic


def events_in(stream: str) -> Iterator[dict[str, Any]]:
    """The data of a stream's events, whose names are their types; comments are skipped."""
    for block in stream.strip().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if lines:
            name, data = lines
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            yield event


def unknown_fields(value: dict[str, Any], kind: type[pydantic.BaseModel]) -> set[str]:
    """The fields that a type does not have, at any depth. Raises ValidationError for what does not fit it."""
    return set(_extra(kind.model_validate(value)))


def _extra(value: Any) -> Iterator[str]:
    if isinstance(value, pydantic.BaseModel):
        yield from value.__pydantic_extra__ or ()
        for one in vars(value).values():
            yield from _extra(one)
    elif isinstance(value, list):
        for one in value:
            yield from _extra(one)
