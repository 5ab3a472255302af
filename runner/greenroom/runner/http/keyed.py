"""`Idempotency-Key`: a command that is sent twice is carried out once, and both get its answer.

The header is the one of the IETF's draft-ietf-httpapi-idempotency-key-header. It is heard on everything that
changes something, but for inference and for archives that are sent (`/models/load`). A client that leaves
in the middle of a job ends nothing: what became of the job is stored for when it asks again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from greenroom.actors.idempotency import (
    IDEMPOTENCY,
    AwaitKeyed,
    BeginKeyed,
    Begun,
    EndKeyed,
    Outcome,
    UnderWay,
)
from greenroom.actors.kernel.errors import KernelError, Refused
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.limits import escaped
from greenroom.runner.http.bodies import BODY, read_body
from greenroom.runner.http.door import Door
from greenroom.runner.http.errors import HttpRefusal, answer_error
from greenroom.runner.http.following import FOLLOWING, Following, outcome_of, replayed
from greenroom.runner.http.headers import request_id_of

HEADER = "Idempotency-Key"
_LONGEST = 255
"""Characters of a key."""
_SHOWN = 300
"""Characters of method and path that are stored."""
_METHODS = frozenset({"POST", "DELETE", "PUT", "PATCH"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def keyed(door: Door) -> Middleware:
    """Hears the header."""
    commands = _Commands(door)

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
                name=escaped(f"{request.method} {request.path}", _SHOWN),
            )
            return await door.visitors.attend(request, lambda: commands.answer(begin, request, handler))
        except (HttpRefusal, KernelError) as error:
            return answer_error(request, error, "text")

    return once


class _Commands:
    """The keyed commands of one front door."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._under_way: dict[str, Following] = {}
        """By key, what others who send the same may watch."""

    @property
    def _system(self) -> ActorSystem:
        # Not before the host has started it: front doors are made earlier.
        return self._door.backstage.system

    async def answer(self, begin: BeginKeyed, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Carry it out, or give the answer of the request that had it carried out. Raises its refusal."""
        found = await self._system.ask(IDEMPOTENCY, begin, cause=request_id_of(request))
        match found:
            case Begun():
                return await self._carry_out(begin.key, request, handler)
            case UnderWay():
                return await self._wait(begin.key, request)
            case _:
                return replayed(found)

    async def _carry_out(self, key: str, request: web.Request, handler: Handler) -> web.StreamResponse:
        following = request[FOLLOWING] = self._under_way[key] = Following(_wish(request))
        outcome: Outcome | None = None
        try:
            response = await handler(request)
            outcome = following.outcome or outcome_of(response, following.refusal)
            return response
        finally:
            if following.pending is not None:
                self._door.keep(self._note_later(key, following.pending))
            else:
                # Also when this request is cancelled: then nobody waits for the word to be taken.
                self._door.keep(self._note(key, outcome))

    async def _wait(self, key: str, request: web.Request) -> web.StreamResponse:
        """Who asks for the same stream gets it from the beginning of his own on; others get the end of it."""
        outcome = asyncio.ensure_future(self._outcome(key))
        following = self._under_way.get(key)
        try:
            if following is not None and following.wish == _wish(request):
                telling = asyncio.ensure_future(following.telling.wait())
                try:
                    await asyncio.wait({outcome, telling}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    telling.cancel()
                if following.tell is not None and not outcome.done():
                    return await following.tell(request, outcome)
            return replayed(await outcome)
        finally:
            outcome.cancel()

    async def _outcome(self, key: str) -> Outcome:
        found: Outcome = await self._system.ask(IDEMPOTENCY, AwaitKeyed(key=key))
        return found

    async def _note_later(self, key: str, pending: asyncio.Task[Outcome | None]) -> None:
        outcome = None
        try:
            outcome = await pending
        finally:
            await self._note(key, outcome)

    async def _note(self, key: str, outcome: Outcome | None) -> None:
        # First, for as soon as it is noted the next one may be carried out.
        self._under_way.pop(key, None)
        try:
            await self._system.ask(IDEMPOTENCY, EndKeyed(key=key, outcome=outcome))
        except Refused:
            # It cannot be stored: whoever comes next carries the command out again.
            self._system.tell(IDEMPOTENCY, EndKeyed(key=key))
        except KernelError:
            return  # Greenroom stops, and with it all that was under way.


def _wish(request: web.Request) -> str:
    """What kind of answer is wanted."""
    return request.headers.get("Accept", "")


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
