"""The record of requests."""

from __future__ import annotations

from typing import Any

import msgspec

from greenroom.runner.http.openapi.operation import WITH_BODY, Operation, Parameter, Returns, streamed
from greenroom.runner.http.requests import BodiesWanted, RecordBody, RecordedRequest
from greenroom.runner.record.row import Row

_UNSET = msgspec.UNSET


class DockerRecord(msgspec.Struct, kw_only=True):
    id: str
    request_id: str
    """Greenroom's own id of the request."""
    model: str
    """As the client wrote it."""
    method: str
    url: str
    """The path, without the query."""
    request: str | None
    """The body; null unless it was recorded."""
    response: str | None
    """The answer, a streamed one as a whole; null unless it was recorded."""
    error: str | msgspec.UnsetType = _UNSET
    """JSON, of a request that failed."""
    timestamp: int
    """Seconds since 1970."""
    status_code: int
    user_agent: str | msgspec.UnsetType = _UNSET


class DockerRecords(msgspec.Struct):
    """The last ten requests to one model."""

    count: int
    model: str
    """The model's id; in a stream the name as the client wrote it."""
    config: dict[str, Any]
    """How the model is configured."""
    records: list[DockerRecord]


OPERATIONS = {
    "GET /requests": Operation(
        summary="List the requests that were recorded",
        detail=(
            "For callers on the daemon's machine. The oldest come first, and those under way last. "
            "Requests that only read are recorded when they were refused."
        ),
        query={
            "model": Parameter("A model's name or id, or the name that the client sent."),
            "status": Parameter(
                "A status such as `404`, a class such as `4xx`, or how it ended: `whole`, `left`, `died`, "
                "`cut`, `refused`, `cancelled`, or `running`."
            ),
            "slow": Parameter("The shortest time to the first token, or else to the end, such as `2s`."),
            "since": Parameter("`10m` (ago), `14:03` or `2026-11-22T10:00`."),
            "last": Parameter("How many of the latest matching requests, at most 1,000.", int),
            "follow": Parameter(
                "Keep the connection open and send each request as it ends, one in a line. Earlier ones "
                "come first only with `last`.",
                bool,
            ),
        },
        answers={200: Returns("The requests.", list[Row], streams=streamed(Row, lines=True))},
        errors=frozenset({404}),
    ),
    "GET /requests/{id}": Operation(
        summary="Get one request from the record",
        path={"id": "The request's id, which its answer carried in `X-Request-Id`."},
        answers={200: Returns("The request.", RecordedRequest)},
        errors=frozenset({404}),
    ),
    "GET /requests/record": Operation(
        summary="Get how many requests are still to be recorded with their bodies",
        answers={200: Returns("How many.", BodiesWanted)},
        errors=frozenset({404}),
    ),
    "POST /requests/record": Operation(
        summary="Record the bodies of the next requests",
        detail="256 KB of each at most. They are removed with the request's row.",
        body=RecordBody,
        answers={200: Returns("How many will be recorded.", BodiesWanted)},
        errors=WITH_BODY | {404},
    ),
    "GET /engines/requests": Operation(
        summary="List the last requests to each model",
        detail=(
            "In Docker Model Runner's format, for callers on the daemon's machine. With `Accept: "
            "text/event-stream` requests are sent as they end, in events named `new_request`."
        ),
        query={
            "model": Parameter("Only this model; in a stream, only requests that named it so."),
            "include_existing": Parameter(
                "Begin a stream with what is recorded, as `existing_request`.", bool
            ),
        },
        answers={200: Returns("The models.", list[DockerRecords], streams=streamed(list[DockerRecords]))},
        errors=frozenset({404}),
    ),
}
