"""What the OpenAI SDK's types say of an answer: no field missing, none unknown, none of another type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pydantic
from openai.types.responses import Response, ResponseStreamEvent

_EVENTS: dict[str, Any] = {}
for _union in get_args(ResponseStreamEvent):
    for _kind in get_args(_union) or (_union,):
        if isinstance(_kind, type) and issubclass(_kind, pydantic.BaseModel):
            _EVENTS[get_args(_kind.model_fields["type"].annotation)[0]] = _kind

_MORE = {"store", "error.error", "name", "prompt_cache_key", "logprobs"}
"""Fields that the real API sends and that the types of some events leave out."""


def events_of(stream: str) -> list[dict[str, Any]]:
    """The events of a stream, each checked against its type, its number and its place."""
    events: list[dict[str, Any]] = []
    for block in stream.strip().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if not lines:
            continue
        name, data = lines
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        check(event, _EVENTS[event["type"]])
        events.append(event)
    return events


def check_response(response: dict[str, Any]) -> None:
    check(response, Response)


def check(value: dict[str, Any], kind: type[pydantic.BaseModel]) -> None:
    """Raises ValidationError, or AssertionError for a field that the type does not have."""
    parsed = kind.model_validate(value)
    strange = {name for name in _extra(parsed) if name not in _MORE}
    if value.get("type") == "error":
        strange.discard("error")
    assert not strange, f"{kind.__name__} has no {strange}"


def _extra(value: Any) -> Iterator[str]:
    if isinstance(value, pydantic.BaseModel):
        yield from value.__pydantic_extra__ or ()
        for one in vars(value).values():
            yield from _extra(one)
    elif isinstance(value, list):
        for one in value:
            yield from _extra(one)
