"""What becomes of a keyed command whose client has left: its answer is waited for, and kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from greenroom.actors.idempotency import Outcome
from greenroom.actors.kernel.errors import KernelError, Refusal
from greenroom.runner.http.errors import answer, refusal_of
from greenroom.runner.http.visitors import LEFT

_LARGEST = 64 * 2**10
"""Bytes of an answer that is remembered."""
_PASSING = frozenset({408, 429, 503})
"""Answers that say nothing of the command: the next one is carried out."""
_PASSING_CODES = frozenset({"cancelled", "internal_error"})
"""Refusals that do not either."""

REPLAYED = "Idempotency-Replayed"
"""Says that an answer is that of an earlier request."""

Tell = Callable[[web.Request, Awaitable[Outcome]], Awaitable[web.StreamResponse]]
"""Tells another client of the same job how far it is, and at last the outcome. Raises its refusal."""


class Following:
    """What a handler leaves behind of a command that takes long."""

    def __init__(self, wish: str = "") -> None:
        """`wish` is the kind of answer that was asked for (`Accept`)."""
        self.wish = wish
        self.tell: Tell | None = None
        """For whoever sends it again; None while there is no stream of its progress."""
        self.telling = asyncio.Event()
        """Set with `tell`."""
        self.outcome: Outcome | None = None
        """How it ended, when its answer was streamed."""
        self.refusal: Refusal | None = None
        """Why its answer is a no, when it is one of its own."""
        self.pending: asyncio.Task[Outcome | None] | None = None
        """How it will end, when nobody listens any more."""

    def told_by(self, tell: Tell) -> None:
        """Its progress is streamed, and others may watch it too."""
        self.tell = tell
        self.telling.set()


FOLLOWING: web.RequestKey[Following] = web.RequestKey("greenroom.following", Following)


async def answered(
    request: web.Request, reply: Awaitable[Any], render: Callable[[Any], web.Response]
) -> web.Response:
    """The answer to a command, as a response. Raises its refusal."""
    task = asyncio.ensure_future(_result(reply))
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
    request: web.Request,
    task: asyncio.Task[Any],
    told: Callable[[Any], Outcome | None],
    refused: Callable[[Refusal], Outcome | None],
) -> None:
    """The client has left in the middle: a keyed command's answer is kept, another's is nobody's business."""
    following = request.get(FOLLOWING)
    if following is None:
        task.cancel()
        return

    async def outcome() -> Outcome | None:
        try:
            return told(await task)
        except KernelError as error:
            return refused_as(error, refused)

    following.pending = asyncio.ensure_future(outcome())


def refused_as(error: KernelError, refused: Callable[[Refusal], Outcome | None]) -> Outcome | None:
    """The outcome that a no is."""
    refusal = refusal_of(error)
    outcome = refused(refusal)
    if outcome is None or not _is_passing(refusal):
        return outcome
    return msgspec.structs.replace(outcome, passing=True, retry_after=refusal.retry_after)


def outcome_of(response: web.StreamResponse, refusal: Refusal | None = None) -> Outcome | None:
    """The outcome that an answer is, and that of a refusal; None when it cannot be given again."""
    if not isinstance(response, web.Response) or response.status == LEFT:
        return None
    body = response.body
    if not isinstance(body, bytes | None) or len(body or b"") > _LARGEST:
        return None
    wait = response.headers.get("Retry-After", "")
    return Outcome(
        status=response.status,
        content_type=response.content_type if body else "",
        body=(body or b"").decode("utf-8", "replace"),
        location=response.headers.get("Location", ""),
        retry_after=float(wait) if wait.isdecimal() else 0.0,
        passing=bool(wait) or response.status in _PASSING or (refusal is not None and _is_passing(refusal)),
    )


def replayed(outcome: Outcome) -> web.Response:
    """The answer to a command that was sent before."""
    headers = {REPLAYED: "true"}
    if outcome.location:
        headers["Location"] = outcome.location
    if outcome.retry_after:
        headers["Retry-After"] = str(max(1, round(outcome.retry_after)))
    body: dict[str, Any] = {}
    if outcome.body:
        body = {"body": outcome.body.encode(), "content_type": outcome.content_type}
    return web.Response(status=outcome.status, headers=headers, **body)


def _is_passing(refusal: Refusal) -> bool:
    return bool(refusal.retry_after) or refusal.code in _PASSING_CODES


async def _result(reply: Awaitable[Any]) -> Any:
    return await reply
