"""`Idempotency-Key`: a command that is sent twice is carried out once, and both get its answer.

The header is the one of the IETF's draft-ietf-httpapi-idempotency-key-header. It is heard on everything that
changes something, but for inference and for archives that are sent (`/models/load`). A client that leaves
in the middle of a job ends nothing: what became of the job is stored for when it asks again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware
from greenroom.actors.idempotency import IDEMPOTENCY, BeginKeyed, Begun, EndKeyed, Outcome
from greenroom.actors.kernel.errors import KernelError, Refused
from greenroom.runner.http.bodies import BODY, read_body
from greenroom.runner.http.door import Door
from greenroom.runner.http.errors import HttpRefusal, answer_error
from greenroom.runner.http.following import FOLLOWING, Following, outcome_of
from greenroom.runner.http.headers import request_id_of

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
"""Says that an answer is that of an earlier request."""

_LONGEST = 255
"""Characters of a key."""
_METHODS = frozenset({"POST", "DELETE", "PUT", "PATCH"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def keyed(door: Door) -> Middleware:
    """Hears the header."""

    @web.middleware
    async def once(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(HEADER)
        if given is None or request.method not in _METHODS or not _is_command(request.path):
            return await handler(request)
        try:
            key = _digest(_checked(given))
            body = request[BODY] = await read_body(request, door.backstage.settings.max_body)
            begin = BeginKeyed(
                key=key,
                command=_digest(request.method, request.path_qs, body.decode("utf-8", "surrogateescape")),
                name=f"{request.method} {request.path}",
            )

            async def ask() -> web.StreamResponse:
                found = await door.backstage.system.ask(IDEMPOTENCY, begin, cause=request_id_of(request))
                if isinstance(found, Begun):
                    return await _carry_out(door, key, request, handler)
                return _again(found)

            return await door.visitors.attend(request, ask)
        except (HttpRefusal, KernelError) as error:
            return answer_error(request, error, "text")

    return once


async def _carry_out(door: Door, key: str, request: web.Request, handler: Handler) -> web.StreamResponse:
    following = request[FOLLOWING] = Following()
    outcome: Outcome | None = None
    try:
        response = await handler(request)
        outcome = following.outcome or outcome_of(response)
        return response
    finally:
        if following.pending is not None:
            door.keep(_note_later(door, key, following.pending))
        else:
            # Also when this request is cancelled: then nobody waits for the word to be taken.
            door.keep(_note(door, key, outcome))


async def _note_later(door: Door, key: str, pending: asyncio.Task[Outcome | None]) -> None:
    outcome = None
    try:
        outcome = await pending
    finally:
        await _note(door, key, outcome)


async def _note(door: Door, key: str, outcome: Outcome | None) -> None:
    system = door.backstage.system
    try:
        await system.ask(IDEMPOTENCY, EndKeyed(key=key, outcome=outcome))
    except Refused:
        # It cannot be stored: whoever comes next carries the command out again.
        system.tell(IDEMPOTENCY, EndKeyed(key=key))
    except KernelError:
        return  # Greenroom stops, and with it all that was under way.


def _again(outcome: Outcome) -> web.Response:
    headers = {REPLAYED: "true"}
    if outcome.location:
        headers["Location"] = outcome.location
    body: dict[str, Any] = {}
    if outcome.body:
        body = {"body": outcome.body.encode(), "content_type": outcome.content_type}
    return web.Response(status=outcome.status, headers=headers, **body)


def _is_command(path: str) -> bool:
    if "/v1/" in path or path.endswith(("/rerank", "/score", "/models/load")):
        return False
    return "/engines" in path or "/models" in path


def _checked(given: str) -> str:
    """The key, with or without the quotes of a structured field. Raises HttpRefusal: 400."""
    key = given.strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key or len(key) > _LONGEST or not key.isascii() or not key.isprintable():
        raise HttpRefusal(
            400,
            "bad_idempotency_key",
            f"{HEADER} must be 1 to {_LONGEST} printable ASCII characters, such as a UUID.",
        )
    return key


def _digest(*parts: str) -> str:
    whole = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(whole).hexdigest()
