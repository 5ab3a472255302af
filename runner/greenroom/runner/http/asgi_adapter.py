"""The adapter to ASGI: the front door as an application for uvicorn, hypercorn, Starlette, Django and others.

Servers differ in what they bound, so what arrives is bounded here as the daemon's own server does it. One
task a request reads what its client sends, up to a bound, and so notices at once when the client leaves;
`Clients` then ends the request. ASGI has no way to cut a connection: an answer that cannot be completed
raises `AnswerCut`. Every server then closes the connection without the end of the body, so no client takes
the answer for whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import parse_qsl, unquote

from multidict import CIMultiDict, MultiDict

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.errors import HttpRefusal, answer, answer_error, family_of
from greenroom.runner.http.matching import RouteTable, decoded, tidied
from greenroom.runner.http.port import AnyResponse, BodyBroken, Request, Response, Stream
from greenroom.runner.record.row import Note

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_READ_AHEAD = 256 * 1024
"""Bytes of a body that may lie unread before its client is made to wait."""
_LINE = 8190
"""Characters of a header or of the path, as aiohttp has it."""
_HEADERS = 128
"""Headers of a request."""
_EMPTYING = 3.0
"""Seconds that requests under way have for their last words when the front door closes."""
_LINGER = 2.0
"""Seconds that a client may go on sending a body that was refused."""
_DIGITS = 18
"""Of a length that are read: more are a body that is too large, whatever its length."""
_NO_BODY = frozenset({204, 304})


class AnswerCut(ConnectionError):
    """An answer that had begun could not be completed, and its connection is to be cut."""


class Door:
    """One life of the front door: what serves requests, and how it ends."""

    def __init__(
        self,
        table: RouteTable,
        serve: Callable[[Request], Awaitable[AnyResponse]],
        *,
        held: Any,
        closing: Callable[[], None],
        empty: Callable[[float], Awaitable[bool]],
        close: Callable[[], Awaitable[None]],
        forget: Callable[[Door], None],
    ) -> None:
        """`serve` handles every request, also those that fit no route.

        Args:
            held: for who opens the door; tests look into it.
            closing: called when it begins to close, while requests are still inside.
            empty: waits so many seconds until none is.
            close: called at its end.
            forget: called when there is nothing left to close.
        """
        self.table = table
        self.serve = serve
        self.held = held
        self._closing, self._empty, self._close, self._forget = closing, empty, close, forget
        self._closed = False
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """End every request with a sentence, then what serves them. In its own loop."""
        if self._closed:
            return
        self._closed = True
        self._closing()
        await self._empty(_EMPTYING)
        await self._close()
        self._forget(self)

    @property
    def is_open(self) -> bool:
        """It is open, and belongs to the loop that runs now."""
        return not self._closed and self._loop is asyncio.get_running_loop()

    def close_from_elsewhere(self) -> None:
        """The same from any thread, within a bound; from its own loop it is only begun."""
        closing = self.close()
        try:
            done = asyncio.run_coroutine_threadsafe(closing, self._loop)
        except RuntimeError:  # the loop is closed, and all that was in it has ended with it
            closing.close()
            self._forget(self)
            return
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is self._loop:
                return
        with contextlib.suppress(TimeoutError):
            done.result(2 * _EMPTYING)


class AsgiApplication:
    """The front door as an ASGI application, to be served alone or mounted under any path."""

    def __init__(
        self, open_door: Callable[[], Door], runs: Callable[[], AbstractAsyncContextManager[object]]
    ) -> None:
        """Args:
        open_door: called in the loop of the first request, and again after the door was closed.
        runs: what has to be entered while requests are served; the lifespan does it.
        """
        self._open_door = open_door
        self._runs = runs
        self._door: Door | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server's, by the ASGI specification."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": "Greenroom has no WebSockets."})
        else:
            raise ValueError(f"Greenroom serves no {scope['type']}")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:  # noqa: ARG002 - the frameworks' form
        """Start the Greenroom, if it does not run yet, and end what was started; also close the front door.

        For frameworks that do not pass a lifespan on to what is mounted: `FastAPI(lifespan=door.lifespan)`.
        """
        async with self._runs():
            try:
                yield
            finally:
                await self.close()

    async def close(self) -> None:
        """Close the front door in order; the next request opens it again. Idempotent."""
        door, self._door = self._door, None
        if door is not None and door.is_open:
            await door.close()
        elif door is not None:
            await asyncio.to_thread(door.close_from_elsewhere)

    @property
    def held(self) -> Any:
        """What the open door holds. None while it is closed."""
        return None if self._door is None else self._door.held

    def _opened(self) -> Door:
        door = self._door
        if door is None or not door.is_open:
            if door is not None:
                # Another loop: test clients have one for each request.
                door.close_from_elsewhere()
            door = self._door = self._open_door()
        return door

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        running = self.lifespan()
        try:
            await running.__aenter__()
        except Exception as error:  # noqa: BLE001 - the server says it and ends
            _log.debug("the start failed", exc_info=error)
            await send({"type": "lifespan.startup.failed", "message": f"Greenroom cannot start: {error}"})
            return
        try:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        finally:
            await running.__aexit__(None, None, None)
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request(scope, receive, send)
        try:
            try:
                if (refused := request.unreadable()) is not None:
                    await request.finish(refused)
                    return
                door = self._opened()
            except Exception as error:  # noqa: BLE001 - `refusal_of` logs what is unexpected
                # As JSON, whatever is asked for: the clients that ask whether it is ready are programs.
                await request.finish(answer_error(request, error, "openai"))
                return
            request.match(door.table)
            await request.begin()
            await request.finish(await door.serve(request))
        except ConnectionError:
            if not request.gone or request.was_cut:
                raise
        finally:
            request.end()


class _Request(Request):
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method = scope["method"]
        root = scope.get("root_path") or ""
        path: str = scope["path"]
        raw = (scope.get("raw_path") or b"").partition(b"?")[0].decode("ascii", "replace")
        # Most give the path whole, as the specification has it; some leave out what it is mounted under.
        whole = not root or path == root or path.startswith(f"{root}/")
        self.path = path if whole else root + path
        inner = path[len(root) :] if whole else path
        if "%" in raw:
            # Escaped slashes are part of a name. Some leave the prefix out of one of the two only.
            safe, plain = decoded(raw), unquote(raw, errors="surrogateescape")
            if plain == self.path and safe.startswith(root):
                inner = safe[len(root) :]
            elif plain == inner:
                inner = safe
        self._route_path = inner or "/"
        self.query_string = scope.get("query_string", b"").decode("utf-8", "surrogateescape")
        self.target = (raw or self.path) + (f"?{self.query_string}" if self.query_string else "")
        self.headers = CIMultiDict(
            (name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))
            for name, value in scope["headers"]
        )
        self.params = {}
        self.answer_headers = {}
        self.note = Note()
        self.was_cut = False
        self._scope, self._receive, self._send = scope, receive, send
        self._query: MultiDict[str] | None = None
        self._stream: _Stream | None = None
        self._over = False
        """The end of the answer is sent, if it is no stream."""
        self._gone = False
        self._sending = 0
        self._reading: asyncio.Task[None] | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._complete = False
        self._news = asyncio.Event()
        """Something has come; the reader of the body waits for it."""
        self._taken = asyncio.Event()
        """What had come was taken; the task that reads ahead waits for it."""

    # for the application

    def unreadable(self) -> Response | None:
        """The answer to a request that is no request of ours, whatever it asks for."""
        what = ""
        if len(self.headers) > _HEADERS:
            what = "it has too many headers"
        elif len(self.target) > _LINE or any(len(n) + len(v) > _LINE for n, v in self.headers.items()):
            what = "a header line is too long"
        if what:
            refusal = Refusal(code="malformed_request", message=f"This request cannot be read: {what}.")
            response = answer(self, refusal, "openai")
            response.close = True
            return response
        if self._expects and self._expects != "100-continue":
            error = HttpRefusal(417, "expectation_failed", "Only Expect: 100-continue is supported.")
            return answer_error(self, error, family_of(self))
        return None

    @property
    def _expects(self) -> str:
        return self.headers.get("Expect", "").lower()

    def match(self, table: RouteTable) -> None:
        """Find the route."""
        found = table.find(self.method, self._route_path)
        if found.route is None and not found.allowed:
            other = tidied(self._route_path)
            if other != self._route_path:
                found = table.find(self.method, other)
                if found.route is not None or found.allowed:
                    self.path = self.path.removesuffix(self._route_path) + other
        self.route, self.params, self.allowed = found.route, found.params, found.allowed

    async def begin(self) -> None:
        """Read what has arrived already. A client that expects 100 gets it once its body is wanted."""
        if not self._expects:
            self._read_on()
            await asyncio.sleep(0)

    def end(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def finish(self, response: AnyResponse) -> None:
        """Send the answer, if it was not sent as a stream."""
        stream = self._stream
        if stream is not None:
            if not stream.ended and (self.was_cut or not self._gone):
                self.was_cut = True
                raise AnswerCut("the answer could not be completed")
            return
        if self.was_cut:
            raise AnswerCut("the connection is cut")
        if self._gone:
            return
        assert isinstance(response, Response)
        headers = self._all(response.headers)
        body = response.body
        if response.status not in _NO_BODY:
            headers["Content-Length"] = str(len(body))
            if body:
                headers.setdefault("Content-Type", "application/octet-stream")
        if response.close and self._scope.get("http_version", "1.1").startswith("1"):
            headers["Connection"] = "close"
        await self._head(response.status, headers)
        body = b"" if self.method == "HEAD" else body
        if not self._complete and (self._reading is not None or not self._expects):
            # It still sends: if the connection were closed with that unread, the answer would be lost.
            await self.hand_over({"type": "http.response.body", "body": body, "more_body": True})
            with contextlib.suppress(TimeoutError, BodyBroken):
                async with asyncio.timeout(_LINGER):
                    while await self.read():
                        """It is thrown away."""
            body = b""
        self._over = True
        await self.hand_over({"type": "http.response.body", "body": body, "more_body": False})

    def _all(self, headers: Mapping[str, str]) -> CIMultiDict[str]:
        made = CIMultiDict(headers)
        made.update(self.answer_headers)
        return made

    async def _head(self, status: int, headers: CIMultiDict[str]) -> None:
        pairs = [
            (name.lower().encode("latin-1"), value.encode("utf-8", "surrogateescape"))
            for name, value in headers.items()
        ]
        await self.hand_over({"type": "http.response.start", "status": status, "headers": pairs})

    async def hand_over(self, message: Message) -> None:
        """Send a message. Raises ConnectionError when the client has left."""
        if self._gone:
            raise ConnectionResetError("the client has left")
        size = len(message.get("body", b""))
        self._sending += size
        try:
            await self._send(message)
        except OSError as error:
            self._gone = True
            raise ConnectionResetError(str(error)) from error
        finally:
            self._sending -= size

    # what was sent

    @property
    def query(self) -> Mapping[str, str]:
        if self._query is None:
            pairs = parse_qsl(self.query_string, keep_blank_values=True, errors="surrogateescape")
            self._query = MultiDict(pairs)
        return self._query

    @property
    def content_length(self) -> int | None:
        said = self.headers.get("Content-Length", "")
        return int(said[:_DIGITS]) if said.isascii() and said.isdigit() else None

    def body_now(self) -> bytes | None:
        if not self._complete:
            return None
        body, self._pieces = b"".join(self._pieces), []
        return body

    async def read(self) -> bytes:
        self._read_on()
        while not self._pieces and not self._complete:
            if self._gone:
                raise BodyBroken
            self._news.clear()
            await self._news.wait()
        piece, self._pieces, self._size = b"".join(self._pieces), [], 0
        self._taken.set()
        return piece

    def _read_on(self) -> None:
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read_ahead())

    async def _read_ahead(self) -> None:
        try:
            while True:
                message = await self._receive()
                if message["type"] != "http.request":
                    break
                if not self._complete and (piece := message.get("body", b"")):
                    self._pieces.append(piece)
                    self._size += len(piece)
                self._complete = self._complete or not message.get("more_body", False)
                self._news.set()
                while self._size > _READ_AHEAD and not self._complete:
                    self._taken.clear()
                    await self._taken.wait()
        except OSError as error:
            _log.debug("a client has left: %s", error)
        except Exception:  # noqa: BLE001 - a fault of the server's costs this request and no other
            _log.exception("a request cannot be read on")
        self._gone = self._gone or not (self._stream.ended if self._stream is not None else self._over)
        self._news.set()

    # the client

    @property
    def gone(self) -> bool:
        return self._gone

    @property
    def connection(self) -> object | None:
        """The request stands for its connection, of which ASGI says nothing."""
        return None if self._gone else self

    @property
    def peer(self) -> object:
        client = self._scope.get("client")
        return None if client is None else tuple(client)

    @property
    def local(self) -> object:
        server = self._scope.get("server")
        # A unix socket is a path without a port.
        return None if server is None or server[1] is None else tuple(server)

    @property
    def remote(self) -> str:
        client = self._scope.get("client")
        return str(client[0] or "") if client else ""

    def unread(self) -> int:
        return self._sending

    # the answer

    async def start(
        self, *, status: int = 200, headers: Mapping[str, str] | None = None, length: int | None = None
    ) -> Stream:
        self._read_on()
        every = self._all(headers or {})
        if length is not None:
            every["Content-Length"] = str(length)
        every.setdefault("Content-Type", "application/octet-stream")
        await self._head(status, every)
        self._stream = _Stream(self, status, every["Content-Type"].partition(";")[0])
        return self._stream

    def close(self) -> None:
        """Nothing: the server decides, once the answer has ended."""

    def abort(self) -> None:
        self._gone = self.was_cut = True


class _Stream(Stream):
    def __init__(self, request: _Request, status: int, content_type: str) -> None:
        self.status = status
        self.content_type = content_type
        self.ended = False
        self._request = request

    @property
    def keeps_up(self) -> bool:
        return False  # whether `send` would wait is not told

    def push(self, data: bytes) -> None:  # noqa: ARG002 - it is never called
        raise AssertionError("ASGI has no way to write without waiting")

    async def write(self, data: bytes) -> None:
        request = self._request
        if request.note.kept is not None:
            request.note.kept.add(data)
        if data and request.method != "HEAD":
            await request.hand_over({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        self.ended = True
        await self._request.hand_over({"type": "http.response.body", "body": b"", "more_body": False})
