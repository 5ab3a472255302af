"""`Idempotency-Key`: a command that is sent twice is carried out once, and both requests get its answer.

The header is that of the IETF's draft-ietf-httpapi-idempotency-key-header. It counts on everything that
changes something, except inference and archives that are sent (`/models/load`). A client that leaves in the
middle of a job ends nothing: the outcome of the job is stored for when the client asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from greenroom.actors.idempotency import AwaitKeyed, BeginKeyed, Begun, EndKeyed, Outcome, UnderWay
from greenroom.actors.kernel.answers import Reply
from greenroom.actors.kernel.core import Command
from greenroom.actors.kernel.errors import KernelError, Refusal, Refused
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.limits import escaped
from greenroom.runner.http.aiohttp_adapter import read_body
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal, answer, answer_error, family_of_path, refusal_of
from greenroom.runner.http.port import AnyResponse, Handler, Request, Response
from greenroom.runner.record.row import LEFT

KEY = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
"""Says that an answer is that of an earlier request."""
_LONGEST = 255
"""Characters of a key."""
_SHOWN = 300
"""Characters of method and path that are stored."""
_METHODS = frozenset({"POST", "DELETE", "PUT", "PATCH"})
_LARGEST = 64 * 2**10
"""Bytes of an answer that is remembered."""
_PASSING = frozenset({408, 429, 503})
"""Answers that say nothing about the command: the next request with the key carries it out."""
_PASSING_CODES = frozenset({"cancelled", "internal_error"})
"""Refusals that do not either."""

Tell = Callable[[Request, Awaitable[Outcome]], Awaitable[AnyResponse]]
"""Streams a job's progress to another client, and its outcome at the end. Raises its refusal."""


class KeyedCommand:
    """What the handler of a keyed command leaves for others that send the same."""

    def __init__(self, accept: str) -> None:
        """`accept` is the kind of answer that was asked for."""
        self.accept = accept
        self.tell: Tell | None = None
        """None while no progress is streamed."""
        self.telling = asyncio.Event()
        """Set with `tell`."""
        self.outcome: Outcome | None = None
        """How it ended, when its answer was streamed."""
        self.refusal: Refusal | None = None
        """Why it was refused, when the answer is not a stream."""
        self.pending: asyncio.Task[Outcome | None] | None = None
        """How it will end, when its client has left."""

    def told_by(self, tell: Tell) -> None:
        """Its progress is streamed, and others may watch it too."""
        self.tell = tell
        self.telling.set()


class IdempotentRequests:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._under_way: dict[str, KeyedCommand] = {}

    @property
    def _system(self) -> ActorSystem:
        # Not before the host has started it: front doors are made earlier.
        return self._context.greenroom.system

    async def once(self, request: Request, handler: Handler) -> AnyResponse:
        """Have the handler answer, unless an earlier request with the same key has been answered."""
        given = request.headers.get(KEY)
        if given is None or request.method not in _METHODS or not is_command(request.path):
            return await handler(request)
        try:
            key = _digest(_checked(given))
            max_body = self._context.greenroom.settings.max_body
            body = request.known_body = await read_body(request, max_body)
            begin = BeginKeyed(
                key=key,
                command=_digest(request.method, request.target, body.decode("utf-8", "surrogateescape")),
                name=escaped(f"{request.method} {request.path}", _SHOWN),
            )
            return await self._context.clients.attend(request, lambda: self._answer(begin, request, handler))
        except (HttpRefusal, KernelError) as error:
            return answer_error(request, error, "text")

    async def _answer(self, begin: BeginKeyed, request: Request, handler: Handler) -> AnyResponse:
        found = await self._system.ask(begin, cause=request.id)
        match found:
            case Begun():
                return await self._carry_out(begin.key, request, handler)
            case UnderWay():
                return await self._wait(begin.key, request)
            case _:
                return replayed(found)

    async def _carry_out(self, key: str, request: Request, handler: Handler) -> AnyResponse:
        keyed = request.keyed = self._under_way[key] = KeyedCommand(request.headers.get("Accept", ""))
        outcome: Outcome | None = None
        try:
            response = await handler(request)
            outcome = keyed.outcome or outcome_of(response, keyed.refusal)
            return response
        finally:
            # Kept also when this request is cancelled: the note is sent without it.
            if keyed.pending is not None:
                self._context.keep(self._note_later(key, keyed.pending))
            else:
                self._context.keep(self._note(key, outcome))

    async def _wait(self, key: str, request: Request) -> AnyResponse:
        """A request for the same kind of stream gets it from now on; others get the end of it."""
        outcome = asyncio.ensure_future(self._outcome(key))
        keyed = self._under_way.get(key)
        try:
            if keyed is not None and keyed.accept == request.headers.get("Accept", ""):
                telling = asyncio.ensure_future(keyed.telling.wait())
                try:
                    await asyncio.wait({outcome, telling}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    telling.cancel()
                if keyed.tell is not None and not outcome.done():
                    return await keyed.tell(request, outcome)
            return replayed(await outcome)
        finally:
            outcome.cancel()

    async def _outcome(self, key: str) -> Outcome:
        found: Outcome = await self._system.ask(AwaitKeyed(key=key))
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
            await self._system.ask(EndKeyed(key=key, outcome=outcome))
        except Refused:
            # It cannot be stored: the next request with the key carries the command out again.
            self._system.tell(EndKeyed(key=key))
        except KernelError:
            return  # Greenroom stops, and with it all that was under way.


# for handlers


@contextlib.contextmanager
def counted(system: ActorSystem, reply: Reply[Any], leave: Command[Any]) -> Iterator[None]:
    """Send `leave` when the block is left before there is a reply."""
    try:
        yield
    finally:
        if not reply.done():
            # A system that stops counts no one.
            with contextlib.suppress(KernelError):
                system.tell(leave)


async def answered(request: Request, reply: Awaitable[Any], render: Callable[[Any], Response]) -> Response:
    """The answer to a command, as a response. Raises its refusal."""
    task = asyncio.ensure_future(reply)
    try:
        return render(await asyncio.shield(task))
    finally:
        if not task.done():
            hand_over(
                request,
                task,
                lambda result: outcome_of(render(result)),
                lambda refusal: outcome_of(answer(request, refusal, "text")),
            )


def hand_over(
    request: Request,
    task: asyncio.Task[Any],
    told: Callable[[Any], Outcome | None],
    refused: Callable[[Refusal], Outcome | None],
) -> None:
    """The client has left in the middle: a keyed command's answer is awaited and kept, any other dropped."""
    if request.keyed is None:
        task.cancel()
        return

    async def outcome() -> Outcome | None:
        try:
            return told(await task)
        except KernelError as error:
            return refused_as(error, refused)

    request.keyed.pending = asyncio.ensure_future(outcome())


def refused_as(error: KernelError, refused: Callable[[Refusal], Outcome | None]) -> Outcome | None:
    """The outcome that a refusal is."""
    refusal = refusal_of(error)
    outcome = refused(refusal)
    if outcome is None or not _is_passing(refusal):
        return outcome
    return msgspec.structs.replace(outcome, passing=True, retry_after=refusal.retry_after)


def outcome_of(response: AnyResponse, refusal: Refusal | None = None) -> Outcome | None:
    """The outcome that an answer is, and that of a refusal; None when it cannot be given again."""
    if not isinstance(response, Response) or response.status == LEFT or len(response.body) > _LARGEST:
        return None
    wait = response.headers.get("Retry-After", "")
    return Outcome(
        status=response.status,
        content_type=response.content_type if response.body else "",
        body=response.body.decode("utf-8", "replace"),
        location=response.headers.get("Location", ""),
        retry_after=float(wait) if wait.isdecimal() else 0.0,
        passing=bool(wait) or response.status in _PASSING or (refusal is not None and _is_passing(refusal)),
    )


def replayed(outcome: Outcome) -> Response:
    """The answer to a command that was sent before."""
    headers = {REPLAYED: "true"}
    if outcome.location:
        headers["Location"] = outcome.location
    if outcome.retry_after:
        headers["Retry-After"] = str(max(1, round(outcome.retry_after)))
    return Response(
        outcome.body.encode(),
        status=outcome.status,
        content_type=outcome.content_type if outcome.body else "",
        headers=headers,
    )


def _is_passing(refusal: Refusal) -> bool:
    return bool(refusal.retry_after) or refusal.code in _PASSING_CODES


def is_command(path: str) -> bool:
    if family_of_path(path) != "text" or path.endswith("/models/load"):
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
            f"{KEY} must be 1 to {_LONGEST} printable ASCII characters, such as a UUID.",
        )
    return key


def _digest(*parts: str) -> str:
    whole = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(whole).hexdigest()
