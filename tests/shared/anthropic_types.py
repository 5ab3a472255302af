"""What the Anthropic SDK's types say of an answer: no field missing, none unknown, none of another type."""

from __future__ import annotations

import functools
from typing import Any, get_args

import pydantic

from sdk_types import events_in, unknown_fields


@functools.cache
def _events() -> dict[str, type[pydantic.BaseModel]]:
    from anthropic.types import RawMessageStreamEvent

    kinds = get_args(get_args(RawMessageStreamEvent)[0])
    return {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in kinds}


def events_of(stream: str) -> list[dict[str, Any]]:
    """The events of a stream, each checked against its type."""
    events = [*events_in(stream)]
    for event in events:
        if event["type"] != "error":
            _check(event, _events()[event["type"]])
    return events


def check_message(message: dict[str, Any]) -> None:
    from anthropic.types import Message

    _check(message, Message)


def _check(value: dict[str, Any], kind: type[pydantic.BaseModel]) -> None:
    """Raises ValidationError, or AssertionError for a field that the type does not have."""
    strange = unknown_fields(value, kind)
    assert not strange, f"{kind.__name__} has no {strange}"
