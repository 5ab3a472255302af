"""What the Anthropic SDK's types say of an answer: no field missing, none unknown, none of another type."""

from __future__ import annotations

import json
from typing import Any, get_args

import pydantic
from anthropic.types import Message, RawMessageStreamEvent

_EVENTS: dict[str, Any] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(RawMessageStreamEvent)[0])
}


def events_of(stream: str) -> list[dict[str, Any]]:
    """The events of a stream, each checked against its type."""
    events: list[dict[str, Any]] = []
    for block in stream.strip().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if not lines:
            continue
        name, data = lines
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "error":
            _check(event, _EVENTS[event["type"]])
        events.append(event)
    return events


def check_message(message: dict[str, Any]) -> None:
    _check(message, Message)


def _check(value: dict[str, Any], kind: type[pydantic.BaseModel]) -> None:
    """Raises ValidationError, or AssertionError for a field that the type does not have."""
    _known(kind.model_validate(value))


def _known(value: Any) -> None:
    if isinstance(value, pydantic.BaseModel):
        assert not value.__pydantic_extra__, f"{type(value).__name__}: {value.__pydantic_extra__}"
        for one in vars(value).values():
            _known(one)
    elif isinstance(value, list):
        for one in value:
            _known(one)
