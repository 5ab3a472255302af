"""What the description of the API says of one operation beside what its route says itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from greenroom.runner.http.fields import Dialogue
from greenroom.runner.http.port import EVENT_STREAM, JSON

NDJSON = "application/x-ndjson"
TAR = "application/x-tar"
PLAIN = "text/plain"


@dataclass(frozen=True)
class Parameter:
    about: str
    kind: Any = str
    """A type, whose schema is the value's."""


@dataclass(frozen=True)
class Fields:
    """What an inference request may hold, under a name of its own."""

    name: str
    dialogue: Dialogue


@dataclass(frozen=True)
class Returns:
    """One status that is no error. A schema is a type, or a JSON schema as it is; None: there is no body."""

    about: str
    schema: Any = None
    content: str = JSON
    other: Mapping[str, Any] | None = None
    """Further media types with their schemas."""
    streams: Mapping[str, Any] | None = None
    """Media types of streams, with the schema of one event or one line."""
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Operation:
    summary: str
    answers: Mapping[int, Returns]
    tag: str = ""
    detail: str = ""
    body: Any = None
    """A struct or `Fields`; None where there is none."""
    content: str = JSON
    """The media type of the body."""
    needs_body: bool = True
    errors: frozenset[int] = frozenset()
    """Statuses of refusals, beside those that any request may get."""
    query: Mapping[str, Parameter] | None = None
    headers: Mapping[str, Parameter] | None = None
    path: Mapping[str, str] | None = None
    """What the variables of the path are, where `VARIABLES` does not say it."""


ANY = frozenset({400, 403, 415, 500, 503})
"""What any request may be refused with."""
WITH_BODY = frozenset({408, 413})
COMMAND = frozenset({404, 409, 422, 429, 507})
"""Of commands that change something."""
JOB = COMMAND | {401, 403, 412, 499, 502}
"""Of what fetches, installs or publishes."""
SERVED = JOB
"""Of what an engine answers: it may have to be installed and loaded first."""

STATUSES = {
    400: "The request is malformed, or a field is wrong.",
    401: "The registry rejected the credentials, or needs some.",
    403: "This host or origin may not call Greenroom, or the registry denied access.",
    404: "There is no such model, backend, version or path.",
    408: "The body did not arrive in time.",
    409: "It is in use, or another change is in progress.",
    412: "The backend is not installed, or cannot run here.",
    413: "The body is larger than `max_body`.",
    415: "The body is compressed, which is not supported.",
    422: "This machine or model cannot serve it, or the `Idempotency-Key` was used for another command.",
    429: "Too many requests are waiting.",
    499: "The job was cancelled.",
    500: "Greenroom failed. Docker's command line also gets this instead of 503.",
    502: "The engine, or a server that Greenroom called, failed.",
    503: "A timeout, or a server could not be reached. Try again.",
    507: "There is not enough memory or disk space.",
}

VARIABLES = {
    "backend": "A backend, such as `llama.cpp`, `mlx` or `vllm`. No other backend then serves the request.",
    "reference": "A model's name or id. It may contain slashes.",
    "response": "The id of a response.",
    "digest": "`sha256:` and 64 hexadecimal digits.",
}

FORCE = Parameter("Remove it even if it is in use, without waiting for its requests.", bool)


def streamed(item: Any, *, lines: bool = False) -> dict[str, Any]:
    """Events of this schema, or lines."""
    return {NDJSON if lines else EVENT_STREAM: item}
