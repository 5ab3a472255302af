"""Errors as clients get them.

Four families: inference routes speak OpenAI's error object, `/v1/messages` Anthropic's, `/api` Ollama's, and
the verbs under `/engines` and `/models` one line of text (or OpenAI's object, to a client that accepts JSON).
All carry the same sentence and status. Never a traceback, never what a tool or an engine has printed or
answered.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from greenroom.actors.kernel.errors import (
    AskExpired,
    ErrorKind,
    Forked,
    KernelError,
    MailboxFull,
    Refusal,
    Refused,
    SystemFailed,
)
from greenroom.actors.library.pulls import refusal_of as job_refusal
from greenroom.runner.actor_states import NotRunning
from greenroom.runner.errors import JobCancelled, JobFailed, machine_failure
from greenroom.runner.http.port import JSON, TEXT, Request, Response

Family = Literal["openai", "anthropic", "ollama", "text"]

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode

VERSION_HEADER = "anthropic-version"
"""Sent by Anthropic's clients with every request."""
DOCKER_CLI = "docker-model-cli/"
SHUT_DOWN = Refusal(
    code="stopping",
    message="Greenroom is shutting down, which ended this request.",
    advice="Send it again in a moment.",
    kind="unavailable",
    retry_after=5.0,
)
"""For requests that are inside when the front door closes."""


_BY_KIND: dict[ErrorKind, int] = {
    "invalid": 400,
    "not_found": 404,
    "conflict": 409,
    "not_ready": 412,
    "internal": 500,
    "unavailable": 503,
    "exhausted": 507,
}
_BY_CODE: dict[tuple[ErrorKind, str], int] = {
    ("invalid", "unauthorized"): 401,
    ("invalid", "not_allowed"): 403,
    ("invalid", "cannot_run_here"): 422,
    ("invalid", "model_damaged"): 422,
    ("invalid", "not_a_model"): 422,
    ("invalid", "unsupported_artifact"): 422,
    ("invalid", "unsupported_model"): 422,
    ("invalid", "unsupported_source"): 422,
    ("conflict", "idempotency_key_reused"): 422,
    ("exhausted", "busy"): 429,
    ("exhausted", "queue_full"): 429,
    ("exhausted", "too_many_failures"): 429,
    ("conflict", "abandoned"): 499,
    ("unavailable", "hash_mismatch"): 502,
    ("unavailable", "refused"): 502,
}
"""Refusals whose status is not the one of their kind."""


class DoorRefusal(Refusal, frozen=True, kw_only=True):
    """A refusal by the front door itself, which names its HTTP status."""

    status: int


def status_of(refusal: Refusal) -> int:
    """The HTTP status of a refusal, an actor's or the front door's own."""
    if isinstance(refusal, DoorRefusal):
        return refusal.status
    return _BY_CODE.get((refusal.kind, refusal.code), _BY_KIND[refusal.kind])


class HttpRefusal(Exception):
    """Raised by handlers of the front door; answered like an actor's refusal."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, **more: Any
    ) -> None:
        super().__init__(message)
        self.param = param
        self.refusal = DoorRefusal(code=code, message=message, status=status, **more)

    def renamed(self, names: Mapping[str, str]) -> HttpRefusal:
        """The same about a field by its other name; itself where it has none."""
        name = names.get(re.split(r"[.\[]", self.param or "", maxsplit=1)[0])
        if name is None:
            return self
        message = self.refusal.message
        if message.startswith(f"{self.param}:"):
            message = name + message[len(self.param or "") :]
        renamed = HttpRefusal(self.refusal.status, self.refusal.code, message, param=name)
        renamed.refusal = msgspec.structs.replace(self.refusal, message=message)
        return renamed


def refusal_of(error: BaseException) -> Refusal:
    """The refusal an exception stands for; an unexpected one is logged, and answered without details."""
    if isinstance(error, Refused | HttpRefusal):
        return error.refusal
    if isinstance(error, JobFailed):
        return job_refusal(error.failure)
    if isinstance(error, JobCancelled):
        return DoorRefusal(code="cancelled", message="The client disconnected.", status=499)
    if isinstance(error, SystemFailed):
        return Refusal(
            code="stopped",
            message=f"Greenroom shut down because of an error: {error}.",
            advice="To see what happened: greenroom log. To start it again: greenroom serve",
            kind="unavailable",
        )
    if isinstance(error, Forked):
        return Refusal(
            code="forked",
            message=f"{error}.",
            advice="Start Greenroom after the fork, in one process, and send requests to it from the others.",
            kind="unavailable",
        )
    if isinstance(error, MailboxFull):
        return Refusal(
            code="busy", message="Too many requests are already waiting.", kind="exhausted", retry_after=1.0
        )
    if isinstance(error, AskExpired):
        return Refusal(
            code="not_in_time", message="The request timed out.", kind="unavailable", retry_after=5.0
        )
    if isinstance(error, KernelError | NotRunning):
        return Refusal(code="stopping", message="Greenroom is stopping.", kind="unavailable", retry_after=2.0)
    if (failure := machine_failure(error)) is not None:
        kind: ErrorKind = "exhausted" if failure.code == "no_space" else "unavailable"
        return Refusal(
            code=failure.code, message=failure.message, advice=failure.advice, kind=kind, retry_after=5.0
        )
    _log.error("a request failed unexpectedly", exc_info=error)
    return Refusal(
        code="internal_error",
        message="Greenroom failed while handling this request.",
        advice="See its log: greenroom logs",
        kind="internal",
    )


def error_object(
    refusal: Refusal, param: str | None = None, family: Family = "openai", request_id: str = ""
) -> dict[str, Any]:
    """The family's error object, with what programs may want to know beside it."""
    if family == "ollama":
        if refusal.code == "model_not_found" and refusal.subject:
            # Clients look for these words.
            question, mark, _ = refusal.advice.partition("?")
            meant = f". {question}?" if mark else ""
            return {"error": f'model "{refusal.subject}" not found, try pulling it first{meant}'}
        return {"error": refusal.sentence()}
    error: dict[str, Any] = {"message": refusal.sentence()}
    if family == "anthropic":
        error |= {"type": _anthropic_type_of(status_of(refusal)), "code": refusal.code}
    else:
        error |= {"type": _type_of(status_of(refusal)), "code": refusal.code or None, "param": param}
    if refusal.subject and refusal.code.startswith("backend"):
        error["backend"] = refusal.subject
    if refusal.retry_after:
        error["retry_after"] = refusal.retry_after
    for name, number in refusal.numbers.items():
        error[name] = int(number) if number.is_integer() else number
    if family != "anthropic":
        return {"error": error}
    return {"type": "error", "error": error, "request_id": request_id or None}


def frame(
    refusal: Refusal, param: str | None = None, family: Family = "openai", request_id: str = ""
) -> bytes:
    """The refusal as the last event of a stream.

    No `[DONE]` follows: clients that overlook the error would take the stream for a whole answer.
    """
    name = b"event: error\n" if family == "anthropic" else b""
    return name + b"data: " + _encode(error_object(refusal, param, family, request_id)) + b"\n\n"


def status_for(request: Request, refusal: Refusal) -> int:
    """The status this client can make sense of.

    Docker's CLI takes every 503 for "the runner is not running" and drops the sentence.
    """
    status = status_of(refusal)
    return 500 if status == 503 and _is_docker(request) else status


def _is_docker(request: Request) -> bool:
    return DOCKER_CLI in request.headers.get("User-Agent", "")


def answer(request: Request, refusal: Refusal, family: Family, param: str | None = None) -> Response:
    """The refusal as a response of its own."""
    request.refused = refusal
    if refusal.code == "model_not_found" and _is_docker(request):
        # It, and scripts around it, look for these words of Docker's own.
        refusal = msgspec.structs.replace(refusal, message=f"model not found: {refusal.message}")
    headers = {"X-Content-Type-Options": "nosniff"}
    if refusal.retry_after > 0:
        headers["Retry-After"] = str(max(1, round(refusal.retry_after)))
    status = status_for(request, refusal)
    if family != "text" or wants_json(request):
        body = _encode(error_object(refusal, param, family, request.id))
        return Response(body, status=status, content_type=JSON, headers=headers)
    body = f"{refusal.sentence()}\n".encode()
    return Response(body, status=status, content_type=TEXT, headers=headers)


def family_of(request: Request) -> Family:
    """Inference speaks its family's error object wherever it is mounted; the verbs speak text."""
    if "/v1/models" in request.path and VERSION_HEADER in request.headers:
        return "anthropic"
    return family_of_path(request.path)


def family_of_path(path: str) -> Family:
    """The same for a request without `anthropic-version`."""
    if path.endswith(("/v1/messages", "/v1/messages/count_tokens")):
        return "anthropic"
    if "/api/" in path.partition("/models/")[0]:
        return "ollama"
    inference = any(one in path for one in _VERSIONED) or path.rpartition("/")[2] in _UNVERSIONED
    under_models = "/models/" in path.partition("/v1/")[0]
    return "openai" if inference and not under_models else "text"


_VERSIONED = ("/v1/", "/v2/", "/responses/")
_UNVERSIONED = frozenset(
    {"rerank", "score", "responses", "tokenize", "detokenize", "apply-template", "infill", "props", "health"}
)
"""Last segments of inference routes that have no version in their paths."""


def answer_error(request: Request, error: BaseException, family: Family) -> Response:
    return answer(request, refusal_of(error), family, getattr(error, "param", None))


def json_response(data: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Plain data as JSON, in the form of Python's own encoder."""
    body = json.dumps(data).encode()
    return Response(body, status=status, content_type=f"{JSON}; charset=utf-8", headers=headers)


def not_now(error: Exception, **more: str) -> Response:
    """503 with the sentence, for those who look at the daemon's state and will look again."""
    refusal = refusal_of(error)
    body = {**more, "error": {"message": refusal.sentence(), "code": refusal.code}}
    return json_response(body, status=503, headers={"Retry-After": "1"})


def encoded(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Structs as JSON."""
    return Response(_encode(value), status=status, content_type=JSON, headers=headers)


def wants_json(request: Request) -> bool:
    """True for a client that asks for JSON in any of its forms."""
    accepted = request.headers.get("Accept", "")
    return JSON in accepted or "ndjson" in accepted


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _anthropic_type_of(status: int) -> str:
    named = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
    }
    if status in (503, 507):
        return "overloaded_error"
    return named.get(status, "invalid_request_error" if status < 500 else "api_error")
