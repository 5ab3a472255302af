"""The journal: what has happened, and the state at any time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from greenroom.runner.diagnosis.event_log import AFTER, JOURNAL, Line
from greenroom.runner.diagnosis.explanation import Explanation
from greenroom.runner.diagnosis.summary import Summary
from greenroom.runner.http.journal import GZIP
from greenroom.runner.http.openapi.operation import PLAIN, Operation, Parameter, Returns, streamed

_TIME = "`2h` (ago), `yesterday`, `14:03`, `2026-11-22T10:00`, or seconds since 1970."
_NAME = (
    "A model, a backend, a client, the id of an engine, request, event, job or process; or `daemon`, "
    "`queue`, `memory`, `requests`."
)
_AS_TEXT = "With `Accept: text/plain`, the text that the command prints."


class ReplayAnswer(msgspec.Struct):
    """The state after an event."""

    seq: int
    """The event's number; 0 for a journal without events."""
    at: float | None
    event: str | None
    """Its id."""
    type: str | None
    states: dict[str, Any]
    """By actor."""
    dormant: dict[str, int]
    """Streams of other programs, with their last version."""


_EXPLAIN = Operation(
    summary="Explain the state of a model, backend, engine or request",
    detail=_AS_TEXT,
    path={"name": f"{_NAME} It may contain slashes."},
    answers={200: Returns("The explanation.", Explanation, other={PLAIN: str})},
    errors=frozenset({404}),
)

OPERATIONS = {
    "GET /why/{name}": _EXPLAIN,
    "GET /why": replace(
        _EXPLAIN, path=None, query={"name": Parameter(f"{_NAME} Without one, all current problems.")}
    ),
    "GET /log": Operation(
        summary="Read the journal: what has happened, oldest first",
        detail=(
            "One event a line, or with `Accept: text/event-stream` one in each event of the stream, whose "
            "`id` is the event's number. Empty parameters are ignored; an event must match all filters."
        ),
        query={
            "about": Parameter(
                "An event's id (`scheduler/8`) or number: what led to it, itself, and what it led to. Or a "
                "request, an engine, a backend or a model."
            ),
            "model": Parameter("Only events about this model."),
            "backend": Parameter("Only events about this backend."),
            "engine": Parameter("Only events about the engine whose id begins with this."),
            "stream": Parameter("Only this stream, such as `install/mlx`."),
            "cause": Parameter("Only this event or request, and what it led to."),
            "kind": Parameter("Only events of these types, such as `load_*`, separated by commas."),
            "problems": Parameter("Only what went wrong.", bool),
            "since": Parameter(_TIME),
            "until": Parameter(_TIME),
            "last": Parameter("Only the last of them, 10,000 at most.", int),
            "after": Parameter(
                "Only events after this one: its number (0 for all), its id, or a time. `Last-Event-ID` does "
                "the same with a number."
            ),
            "follow": Parameter("Keep the connection open and send new events.", bool),
        },
        answers={
            200: Returns(
                "The events.",
                streams={**streamed(Line, lines=True), **streamed(Line)},
                headers=(JOURNAL, AFTER),
            )
        },
        errors=frozenset({404}),
    ),
    "GET /log/summary": Operation(
        summary="Count what has happened since a moment",
        query={
            "since": Parameter(f"{_TIME} 24 hours before `until`, unless given."),
            "until": Parameter(_TIME),
        },
        answers={200: Returns("The counts; similar events are one entry.", Summary)},
    ),
    "GET /replay": Operation(
        summary="Get the state of every actor at any time, rebuilt from the journal",
        detail=_AS_TEXT,
        query={"at": Parameter(f"An event's id or number, or a time: {_TIME} The last event, unless given.")},
        answers={200: Returns("The state.", ReplayAnswer, other={PLAIN: str})},
        errors=frozenset({404}),
    ),
    "GET /bundle": Operation(
        summary="Get an archive for a bug report, without secrets or prompts",
        detail="Callers on other machines get it without the record of requests.",
        answers={200: Returns("A compressed tar archive.", bytes, content=GZIP)},
    ),
}
