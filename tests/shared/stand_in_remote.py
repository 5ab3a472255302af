"""A stand-in for a remote backend: it answers like OpenAI's API, or fails as a test asks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

KEY = "sk-planted-5Zq8vTw"
TOKENS = ("Good", " day", " there")


class StandInRemote:
    """`how` decides how chats are answered; everything it was asked is kept."""

    def __init__(self, key: str = KEY) -> None:
        self.key = key
        self.how = "well"
        self.models: Any = ["llama-3", "org/mistral:7b"]
        self.url = ""
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        """Path, headers and body of each request but those for the models."""
        self.lists = 0
        """How often it was asked for its models."""
        self.left = asyncio.Event()
        """A client has left in the middle of its answer."""
        self.inside = 0
        self.most_inside = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def list(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models`."""
        self.lists += 1
        if self.how == "down":
            assert request.transport is not None
            request.transport.abort()
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": f"bad key {self.key[:6]}"}}, status=401)
        return web.json_response({"object": "list", "data": [{"id": one} for one in self.models]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Any POST."""
        body = await request.read()
        self.asked.append((request.path, dict(request.headers), body))
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            return await self._answer(request, json.loads(body))
        finally:
            self.inside -= 1

    async def _answer(self, request: web.Request, fields: dict[str, Any]) -> web.StreamResponse:
        match self.how:
            case "html":
                return web.Response(text="<html>hello</html>", content_type="text/html")
            case "garbage":
                return web.Response(text="{not json", content_type="application/json")
            case "redirects":
                raise web.HTTPTemporaryRedirect("http://127.0.0.1:9/steal?x=1")
            case "busy":
                error = {"error": {"message": f"slow down, {self.key}"}}
                return web.json_response(error, status=429, headers={"Retry-After": "17"})
            case "refuses":
                return web.json_response({"error": {"message": f"no, {self.key}\x1b[2J"}}, status=400)
            case "wants another key":
                return web.json_response({"error": {"message": "who?"}}, status=401)
            case "fails":
                return web.json_response({"error": {"message": "kaputt"}}, status=500)
            case "says nothing":
                await self._hold()
        if "input" in fields:
            rows = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
            usage = {"prompt_tokens": 2, "total_tokens": 2}
            return web.json_response(
                {"object": "list", "data": rows, "model": fields["model"], "usage": usage}
            )
        usage = {"prompt_tokens": 7, "completion_tokens": len(TOKENS), "total_tokens": 10}
        if fields.get("stream"):
            return await self._stream(request, fields, usage)
        await self.go_on.wait()
        said = {"role": "assistant", "content": "".join(TOKENS)}
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        return web.json_response(
            {"id": "c", "object": "chat.completion", "model": fields["model"], "choices": [choice]}
            | {"created": 1, "usage": usage}
        )

    async def _stream(
        self, request: web.Request, fields: dict[str, Any], usage: dict[str, int]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Own": "secret"})
        await response.prepare(request)
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": fields["model"]}

        async def say(**more: Any) -> None:
            await response.write(b"data: " + json.dumps({**chunk, **more}).encode() + b"\n\n")

        for token in TOKENS:
            await say(choices=[{"index": 0, "delta": {"content": token}, "finish_reason": None}])
        if self.how == "dies":
            assert request.transport is not None
            request.transport.abort()
            return response
        if self.how == "errs":
            await response.write(b'data: {"error": {"message": "out of memory", "code": 500}}\n\n')
            return response
        if self.how == "stalls":
            await self._hold()
        await self.go_on.wait()
        await say(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=usage)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _hold(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()


@contextlib.asynccontextmanager
async def serving(
    remote: StandInRemote, *, tls: ssl.SSLContext | None = None, file: str = ""
) -> AsyncIterator[StandInRemote]:
    """It listens inside: on a port, or on a unix socket at `file`."""
    app = web.Application()
    app.router.add_get("/v1/models", remote.list)
    app.router.add_post("/{path:.+}", remote.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    if file:
        await web.UnixSite(runner, file).start()
        remote.url = f"unix:{file}"
    else:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        remote.url = f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield remote
    finally:
        await runner.cleanup()
