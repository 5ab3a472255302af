"""What the OpenAI SDK's types say of an answer: no field missing, none unknown, none of another type."""

from __future__ import annotations

import functools
from typing import Any, get_args

import pydantic

from sdk_types import events_in, unknown_fields

_MORE = {"store", "error.error", "name", "prompt_cache_key", "logprobs"}
"""Fields that the real API sends and that the types of some events leave out."""


@functools.cache
def _events() -> dict[str, type[pydantic.BaseModel]]:
    from openai.types.responses import ResponseStreamEvent

    kinds = [kind for union in get_args(ResponseStreamEvent) for kind in get_args(union) or (union,)]
    return {
        get_args(kind.model_fields["type"].annotation)[0]: kind
        for kind in kinds
        if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)
    }


def events_of(stream: str) -> list[dict[str, Any]]:
    """The events of a stream, each checked against its type, its number and its place."""
    events = [*events_in(stream)]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    for event in events:
        check(event, _events()[event["type"]])
    return events


def check_response(response: dict[str, Any]) -> None:
    from openai.types.responses import Response

    check(response, Response)


def check(value: dict[str, Any], kind: type[pydantic.BaseModel]) -> None:
    """Raises ValidationError, or AssertionError for a field that the type does not have."""
    strange = unknown_fields(value, kind) - _MORE
    if value.get("type") == "error":
        strange.discard("error")
    assert not strange, f"{kind.__name__} has no {strange}"
