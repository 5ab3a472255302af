"""The adapter to aiohttp, the server that carries the front door. No other module imports aiohttp.

`mount` makes an application of the table of routes; `ServerRunner` serves it for the daemon. Without it,
aiohttp logs a traceback for each request that is not HTTP and sends the line in question back to the
client. `ServerRunner` logs one line, answers one sentence without anything that was sent, and does not
decompress bodies.

aiohttp cancels the handler of a client that has left only with `handler_cancellation`, which is off by
default and not ours to set in a host's application. So one timer of `Clients` looks at the connections of all
requests under way, fifty times a second while there are any, and cancels those whose client has left.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import logging
import termios
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import (
    BadHttpMethod,
    BadStatusLine,
    HttpProcessingError,
    InvalidHeader,
    LineTooLong,
)

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.errors import HttpRefusal, answer, answer_error, family_of
from greenroom.runner.http.matching import tidied
from greenroom.runner.http.port import AnyResponse, BodyBroken, Handler, Request, Response, Route, Stream
from greenroom.runner.record.bodies import Kept
from greenroom.runner.record.row import LEFT, Note
from greenroom.runner.units import format_size

__all__ = ["Application", "Clients", "ServerRunner", "holder", "mount", "watch"]

_log = logging.getLogger(__name__)

Application = web.Application

_HOLDER: web.AppKey[Any] = web.AppKey("greenroom.holder", object)
_INTERVAL = 0.02
"""Seconds; well below the tenth of a second within which an engine must stop generating."""
_BODY_TIMEOUT = 120.0
"""Seconds for a whole body: generous for 10 MB on a bad line, and still an end."""

NAMING = 1_000_000
"""Bytes of a body that only names things: what is larger is not worth the time to read it."""
STEP = 1.0
"""Seconds between two looks; of a longer gap, in which this process was stopped, no more counts than two."""
_UNREAD = 64 * 1024
"""Bytes a client may be behind and still count as keeping up."""
_UNREADABLE = (
    (LineTooLong, "a header line is too long"),
    (InvalidHeader, "a header is malformed"),
    ((BadHttpMethod, BadStatusLine), "its first line is not a request line"),
)


def mount(
    routes: Iterable[Route],
    serve: Callable[[Request], Awaitable[AnyResponse]],
    *,
    held: object,
    closing: Callable[[], None],
    close: Callable[[], Awaitable[None]],
) -> Application:
    """An application with these routes; `serve` handles every request, also those that fit no route.

    Args:
        held: what `holder` gives back for the application.
        closing: called when the application begins to shut down, while requests are still inside.
        close: called at its end.
    """
    known: dict[web.AbstractRoute, Route] = {}

    async def handle(request: web.Request) -> web.StreamResponse:
        info = request.match_info
        ours = _Request(request)
        if isinstance(info.http_exception, web.HTTPNotFound):
            path = tidied(request.rel_url.raw_path)
            meant = request.clone(rel_url=request.rel_url.with_path(path, encoded=True))
            info = await app.router.resolve(meant)
            if not isinstance(info.http_exception, web.HTTPNotFound):
                ours.path = meant.path
        ours.route, ours.params = known.get(info.route), info
        if isinstance(info.http_exception, web.HTTPMethodNotAllowed):
            ours.allowed = tuple(sorted(info.http_exception.allowed_methods))
        return await ours.finish(await serve(ours))

    @web.middleware
    async def unmatched(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        return await (handle(request) if request.match_info.http_exception is not None else handler(request))

    app = Application(middlewares=[unmatched])
    for route in routes:
        for method in ("HEAD", "GET") if route.method == "GET" else (route.method,):
            mounted = app.router.add_route(method, route.pattern, handle, expect_handler=_expected)
            known[mounted] = replace(route, method=method)

    async def on_shutdown(_: Application) -> None:
        closing()

    async def on_cleanup(_: Application) -> None:
        await close()

    app[_HOLDER] = held
    app.on_shutdown.append(on_shutdown)
    app.on_cleanup.append(on_cleanup)
    return app


def holder(app: Application) -> Any:
    """What was `held` when the application was mounted."""
    return app[_HOLDER]


def watch(app: Application, begin: Callable[[object], None], end: Callable[[object], None]) -> None:
    """Call `begin` and `end` with the connection (an asyncio protocol) around every request."""

    @web.middleware
    async def watched(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        connection = request.protocol
        begin(connection)
        try:
            return await handler(request)
        finally:
            end(connection)

    app.middlewares.insert(0, watched)


async def _expected(request: web.Request) -> web.StreamResponse | None:
    """Answer `Expect` before the body is sent: aiohttp would refuse what it does not know in plain text."""
    if request.headers["Expect"].lower() != "100-continue":
        ours = _Request(request)
        refusal = HttpRefusal(417, "expectation_failed", "Only Expect: 100-continue is supported.")
        return await ours.finish(answer_error(ours, refusal, family_of(ours)))
    if request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    return None


@dataclass(eq=False, slots=True)
class _Served:
    request: Request
    task: asyncio.Task[object]
    left: bool = False
    """The client has left, and the task was cancelled for it."""
    dismissed: bool = False
    """The front door closes, and the task was cancelled for it."""
    endless: Stream | None = None
    """The answer, where it has no end of its own."""


class Clients:
    """The clients that one front door serves. Lives in one event loop."""

    def __init__(self) -> None:
        self._inside: set[_Served] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._none_left: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._inside)

    async def attend(
        self,
        request: Request,
        serve: Callable[[], Awaitable[AnyResponse]],
        farewell: Callable[[], Awaitable[AnyResponse]] | None = None,
    ) -> AnyResponse:
        """Serve a request for as long as its client stays.

        When the front door closes, `serve` is cancelled too, and `farewell` makes the last answer.
        """
        task = asyncio.current_task()
        assert task is not None
        served = _Served(request, task)
        self._inside.add(served)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._look)
        try:
            return await serve()
        except asyncio.CancelledError:
            if not (served.left or served.dismissed) or task.uncancel() > 0:
                raise  # cancelled from elsewhere, perhaps as well
            if served.left or request.served:
                return Response(status=request.served or LEFT)
            if (endless := served.endless) is not None:
                farewell = partial(_ended, endless)
            if farewell is None:
                return Response(status=LEFT)
            with contextlib.suppress(ConnectionError):  # the client may leave at the same moment
                return await farewell()
            return Response(status=LEFT)
        except ConnectionError:
            # A write found the connection closed before the timer did.
            if not request.gone:
                raise
            return Response(status=request.served or LEFT)
        finally:
            self._inside.discard(served)
            if not self._inside and self._none_left is not None:
                self._none_left.set()

    def attended(self, handler: Handler) -> Handler:
        """The handler, cancelled when its client leaves or the front door closes."""
        return lambda request: self.attend(request, lambda: handler(request))

    def goes_on(self, request: Request, answer: Stream) -> None:
        """The answer has no end of its own: when the daemon stops, it ends at once, and in order."""
        for served in self._inside:
            if served.request is request:
                served.endless = answer

    async def empty(self, within: float) -> bool:
        """Wait until no request is under way, at most `within` seconds; whether it is so."""
        self._dismiss(served for served in self._inside if served.endless is not None)
        if self._inside:
            self._none_left = asyncio.Event()
            try:
                async with asyncio.timeout(within):
                    await self._none_left.wait()
            except TimeoutError:
                return False
            finally:
                self._none_left = None
        return True

    def dismiss(self) -> None:
        """End every request with a sentence: the front door closes."""
        self._dismiss(self._inside)

    def _dismiss(self, those: Iterable[_Served]) -> None:
        for served in tuple(those):
            if not served.left and not served.dismissed:
                served.dismissed = True
                served.task.cancel()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        for served in tuple(self._inside):
            if not served.left and not served.dismissed and served.request.gone:
                served.left = True
                served.task.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_INTERVAL, self._look) if self._inside else None


async def _ended(stream: Stream) -> Stream:
    await stream.end()
    return stream


# what they send


class Patience:
    """Like `asyncio.timeout`, but time in which this process was stopped or the machine slept does not count.

    The block raises TimeoutError.
    """

    def __init__(self, seconds: float) -> None:
        self.used = 0.0
        """Seconds that have counted so far."""
        self._seconds = seconds
        self._bound = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()
        self._seen = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._bound.__aenter__()
        self._wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._count()
        await self._bound.__aexit__(kind, error, trace)

    def _wait(self) -> None:
        self._timer = self._loop.call_later(max(0.0, min(STEP, self._seconds - self.used)), self._look)

    def _look(self) -> None:
        self._count()
        if self.used >= self._seconds:
            self._bound.reschedule(self._loop.time())
        else:
            self._wait()

    def _count(self) -> None:
        now = self._loop.time()
        self.used += min(now - self._seen, 2 * STEP)
        self._seen = now


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body.

    `limit` is in bytes and holds for what arrives unpacked too, also in a host's application with other
    limits. Raises HttpRefusal: 413 past the limit, 408 when it does not come, 400 when it is cut off.
    """
    known = request.known_body
    if known is not None:
        if len(known) > limit:
            raise _too_large(limit)
        return known
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = request.body_now()
    if body is not None:
        if len(body) > limit:
            raise _too_large(limit)
        return body
    chunks: list[bytes] = []
    size = 0
    try:
        async with Patience(_BODY_TIMEOUT):
            while chunk := await request.read():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError:
        raise HttpRefusal(408, "body_timeout", "The request's body did not arrive in time.") from None
    except BodyBroken:
        raise HttpRefusal(400, "bad_body", "The request's body was cut off or badly encoded.") from None
    return b"".join(chunks)


def _too_large(limit: int) -> HttpRefusal:
    return HttpRefusal(
        413,
        "request_too_large",
        f"request too large: the body is larger than {format_size(limit)}.",
        advice="Send less." if limit <= NAMING else "Send less, or raise max_body in the configuration.",
    )


class _Request(Request):
    def __init__(self, request: web.BaseRequest) -> None:
        self.method = request.method
        self.path = request.path
        self.target = request.raw_path
        self.query_string = request.query_string
        self.headers = request.headers
        self.answer_headers = {}
        self.note = Note()
        self._web = request
        self._stream: _Stream | None = None

    async def finish(self, response: AnyResponse) -> web.StreamResponse:
        """The answer as aiohttp takes it from a handler."""
        stream = self._stream
        if stream is not None:
            if not stream.ended:
                # A head that has been sent cannot be taken back; cutting the connection shows the failure.
                self.abort()
            return stream.response
        assert isinstance(response, Response)
        made = web.Response(
            body=response.body or None, status=response.status, headers=self._all(response.headers)
        )
        if response.close:
            made.force_close()
            protocol = self._web.protocol
            if not isinstance(protocol, _Connection):
                # A host's aiohttp would unpack the rest of the body, to throw it away.
                await made.prepare(self._web)
                await made.write_eof()
                protocol.force_close()
        return made

    def _all(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        return {**headers, **self.answer_headers}

    @property
    def query(self) -> Mapping[str, str]:
        return self._web.query

    @property
    def content_length(self) -> int | None:
        return self._web.content_length

    def body_now(self) -> bytes | None:
        content = self._web.content
        return content.read_nowait() if content.is_eof() else None

    async def read(self) -> bytes:
        content = self._web.content
        try:
            return b"" if content.at_eof() else await content.readany()
        except web.RequestPayloadError as error:
            raise BodyBroken from error

    @property
    def gone(self) -> bool:
        transport = self._web.transport
        return transport is None or transport.is_closing()

    @property
    def connection(self) -> asyncio.Transport | None:
        return self._web.transport

    def _info(self, name: str) -> object:
        transport = self._web.transport
        return None if transport is None else transport.get_extra_info(name)

    @property
    def peer(self) -> object:
        return self._info("peername")

    @property
    def local(self) -> object:
        return self._info("sockname")

    @property
    def remote(self) -> str:
        return self._web.remote or ""

    def unread(self) -> int:
        transport = self._web.transport
        return 0 if transport is None else transport.get_write_buffer_size() + _in_flight(transport)

    async def start(
        self, *, status: int = 200, headers: Mapping[str, str] | None = None, length: int | None = None
    ) -> Stream:
        response = web.StreamResponse(status=status, headers=self._all(headers or {}))
        if length is not None:
            response.content_length = length
        assert isinstance(self._web, web.Request)
        await response.prepare(self._web)
        self._stream = _Stream(response, self._web, self.note.kept)
        return self._stream

    def close(self) -> None:
        if (transport := self._web.transport) is not None:
            transport.close()

    def abort(self) -> None:
        if (transport := self._web.transport) is not None:
            transport.abort()


class _Stream(Stream):
    def __init__(self, response: web.StreamResponse, request: web.Request, kept: Kept | None) -> None:
        """What is sent is `kept` too."""
        self._kept = kept
        self.response = response
        self.status = response.status
        self.content_type = response.content_type
        self.ended = False
        self._request = request
        # Writing past aiohttp's writer is right only where we know what it would write.
        self._direct = response.headers.get("Transfer-Encoding") == "chunked" and not response.compression

    @property
    def keeps_up(self) -> bool:
        transport = self._request.transport
        return (
            self._direct
            and transport is not None
            and not transport.is_closing()
            and transport.get_write_buffer_size() <= _UNREAD
        )

    def push(self, data: bytes) -> None:
        transport = self._request.transport
        assert transport is not None
        if self._kept is not None:
            self._kept.add(data)
        transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def write(self, data: bytes) -> None:
        if self._kept is not None:
            self._kept.add(data)
        await self.response.write(data)

    async def end(self) -> None:
        await self.response.write_eof()
        self.ended = True


def _in_flight(transport: asyncio.BaseTransport) -> int:
    """Bytes the system holds that the other side has not taken; 0 where it does not tell."""
    own = transport.get_extra_info("socket")
    held = array.array("i", [0])
    try:
        fcntl.ioctl(own.fileno(), termios.TIOCOUTQ, held)
    except (OSError, AttributeError):
        return 0
    return max(0, held[0])


class ServerRunner(web.AppRunner):
    """An `AppRunner` whose connections are ours."""

    __slots__ = ()

    def __init__(self, app: Application, **more: Any) -> None:
        super().__init__(app, auto_decompress=False, **more)

    async def _make_server(self) -> web.Server:
        # aiohttp offers no other way to say how connections are made.
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,  # noqa: SLF001 - there is no public one
            **made._kwargs,  # noqa: SLF001
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it repeats what was sent
    ) -> web.StreamResponse:
        """Answer a request that no handler could be given, and close."""
        if isinstance(exc, HttpProcessingError) and status < 500:
            what = next((what for kind, what in _UNREADABLE if isinstance(exc, kind)), "it is not HTTP")
            _log.info("a request from %s cannot be read: %s", request.remote, what)
            refusal = Refusal(code="malformed_request", message=f"This request cannot be read: {what}.")
        else:
            _log.error("a request failed unexpectedly", exc_info=exc)
            refusal = Refusal(
                code="internal_error",
                message="Greenroom failed while handling this request.",
                advice="See its log: greenroom logs",
                kind="internal",
            )
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has already begun")
        made = answer(_Request(request), refusal, "openai")
        response = web.Response(body=made.body, status=made.status, headers=made.headers)
        response.force_close()
        return response
