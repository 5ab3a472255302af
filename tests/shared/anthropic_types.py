"""What the Anthropic SDK's types say of an answer: no field missing, none unknown, none of another type."""

from __future__ import annotations

from typing import Any, get_args

import pydantic
from anthropic.types import Message, RawMessageStreamEvent

from sdk_types import events_in, unknown_fields

_EVENTS: dict[str, Any] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(RawMessageStreamEvent)[0])
}


def events_of(stream: str) -> list[dict[str, Any]]:
    """The events of a stream, each checked against its type."""
    events = [*events_in(stream)]
    for event in events:
        if event["type"] != "error":
            _check(event, _EVENTS[event["type"]])
    return events


def check_message(message: dict[str, Any]) -> None:
    _check(message, Message)


def _check(value: dict[str, Any], kind: type[pydantic.BaseModel]) -> None:
    """Raises ValidationError, or AssertionError for a field that the type does not have."""
    strange = unknown_fields(value, kind)
    assert not strange, f"{kind.__name__} has no {strange}"
