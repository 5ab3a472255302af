"""Pulls and pushes in Ollama's form: one JSON object a line, each with a status.

While a file moves, its line has `digest`, `total` and `completed`, in bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Literal

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.library.messages import CancelPush, LeavePull, Pull, Push
from greenroom.actors.progress import pull_job, push_job
from greenroom.actors.values import Part, Progress
from greenroom.runner.http.bodies import read_json
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import json_response
from greenroom.runner.http.idempotency import counted
from greenroom.runner.http.ollama.answer import NDJSON
from greenroom.runner.http.ollama.models import OllamaBody
from greenroom.runner.http.port import AnyResponse, Request
from greenroom.runner.http.progress_stream import stream_job
from greenroom.runner.http.transfers import canonical, published_as

_encode = msgspec.json.Encoder().encode


class PullBody(OllamaBody):
    """`POST /api/pull`."""

    stream: bool | None = None


class OllamaPushBody(OllamaBody):
    """`POST /api/push`."""

    stream: bool | None = None


class OllamaTransfers:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def pull(self, request: Request) -> AnyResponse:
        """Have a model in the store. A pull goes on when its client leaves."""
        body = await read_json(request, PullBody, what="the body must be an object with a model")
        self._context.greenroom.see_that_it_is_ours(body.asked)
        reference = canonical(body.asked)
        system = self._context.greenroom.system
        caller = await self._context.callers.looked_up(request)
        reply = system.ask(Pull(reference=reference, waiter=request.id, caller=caller), cause=request.id)
        with counted(system, reply, LeavePull(reference=reference, waiter=request.id)):
            return await self._told(request, body.stream, pull_job(reference), reply, "pull")

    async def push(self, request: Request) -> AnyResponse:
        """Publish a model. It ends when the last client that waits for it has gone."""
        body = await read_json(request, OllamaPushBody, what="the body must be an object with a model")
        model = self._context.greenroom.model(body.asked)
        reference = published_as(body.asked, model)
        system = self._context.greenroom.system
        reply = system.ask(Push(model_id=model.id, reference=reference))
        try:
            return await self._told(request, body.stream, push_job(reference), reply, "push")
        except (asyncio.CancelledError, ConnectionError):
            system.tell(CancelPush(reference=reference, model_id=model.id))
            raise

    async def _told(
        self, request: Request, stream: bool | None, job: str, reply: Awaitable[Any], mode: _Mode
    ) -> AnyResponse:
        if stream is False:
            await reply
            return json_response({"status": "success"})
        return await stream_job(request, self._context.greenroom.board, job, reply, StatusLines(mode))


_Mode = Literal["pull", "push"]
_FIRST = {"pull": "pulling manifest", "push": "retrieving manifest"}
_MOVING = {"pull": "downloading", "push": "uploading"}
_VERBS = {"pull": "pulling", "push": "pushing"}
_LAST = {"pull": ("verifying sha256 digest", "writing manifest"), "push": ("pushing manifest",)}


class StatusLines:
    """The lines of one transfer, in order; the bytes of a file never go back and end at its size."""

    content_type = NDJSON

    def __init__(self, mode: _Mode) -> None:
        self._mode: _Mode = mode
        self._files: dict[str, Part] = {}
        """As sent last."""
        self._sent = b""

    def again(self) -> StatusLines:
        """The same for another client, from the beginning."""
        return StatusLines(self._mode)

    def progress(self, progress: Progress) -> bytes:
        begun = self._begun()
        if progress.phase == _MOVING[self._mode] and progress.parts:
            return begun + b"".join(self._moved(part) for part in progress.parts)
        return begun + (self._say(progress.message) if progress.message else b"")

    def heartbeat(self) -> bytes:
        """The last line once more, which changes nothing: clients read each as JSON."""
        return self._sent or _line(_FIRST[self._mode])

    def success(self, result: object) -> bytes:  # noqa: ARG002 - it says nothing that clients look for
        lines = self._begun()
        for part in tuple(self._files.values()):
            lines += self._moved(msgspec.structs.replace(part, done=part.size))
        for status in (*_LAST[self._mode], "success"):
            lines += self._say(status)
        return lines

    def error(self, refusal: Refusal) -> bytes:
        return _encode({"error": refusal.sentence()}) + b"\n"

    def _begun(self) -> bytes:
        return b"" if self._sent else self._say(_FIRST[self._mode])

    def _moved(self, part: Part) -> bytes:
        sent = self._files.get(part.id)
        if sent is not None and part.done <= sent.done:
            return b""
        self._files[part.id] = part
        name = part.id.removeprefix("sha256:")[:12]
        more = {"digest": part.id, "total": part.size} | ({"completed": part.done} if part.done else {})
        return self._say(f"{_VERBS[self._mode]} {name}", **more)

    def _say(self, status: str, **more: Any) -> bytes:
        line = _line(status, **more)
        if line == self._sent:
            return b""
        self._sent = line
        return line


def _line(status: str, **more: Any) -> bytes:
    return _encode({"status": status, **more}) + b"\n"
