"""The connections to engines: one pool for each endpoint, as many connections as there are requests.

aiohttp's client would do and costs a quarter of a millisecond a request on a small machine, which is most of
what the front door may add. Parsing is llhttp's (httptools), so nothing of the protocol is decided here but
where an answer ends.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from time import monotonic
from typing import cast
from urllib.parse import urlsplit

import httptools
from multidict import CIMultiDict

from greenroom.actors.gates import LastByte
from greenroom.runner.http.port import Request
from greenroom.runner.systems import here
from greenroom.runner.units import format_size

_READ_AHEAD = 256 * 1024
"""Bytes that may lie unread before the engine is made to wait."""
_PIECE = 256 * 1024
"""Bytes that are written to an engine at once: megabytes would hold up every other stream."""
_SMALL = 64 * 1024
"""Bytes of a body that a socket takes at once, whether or not the engine reads."""
_INFORMATIONAL = 200
_OVERHEAD = 64_000
"""Bytes an engine may send without one that belongs to an answer's body: heads, chunk sizes, trailers."""
KEEP_ALIVE = 2.0
"""Seconds an idle connection is kept: less than any engine keeps it, so that none is found closed."""
_CROWDED = 10.0
"""Seconds to go on knocking at an engine whose queue of new connections is full."""

_FORWARDED = frozenset(
    "accept accept-language anthropic-beta anthropic-version traceparent user-agent".split()
)
_RETURNED = frozenset("cache-control content-encoding content-type".split())
_PLAIN = re.compile(r"[\x20-\x7e\t]*")
"""A value that can be sent on: an engine's may hold anything."""

Push = Callable[[bytes], bool]
"""Takes a piece of an answer at once, or declines it."""


class Lost(Exception):
    """The engine broke off: before it had answered, or before its answer was complete."""


class Connection(asyncio.Protocol):
    """One socket to an engine, and the answer on it: there is one at a time, from `send` to `close`."""

    def __init__(self, on_free: Callable[[Connection], None], last_byte: LastByte) -> None:
        """`on_free` is called when it may be used again; `last_byte` is set whenever something comes."""
        self._on_free = on_free
        self._last_byte = last_byte
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._news: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._push: Push | None = None
        self._paused = False
        self._begin()
        self._busy = False
        self.host = "localhost"
        """What requests call the other side."""
        self.idle_since = 0.0
        """The loop's time when it was last freed."""

    def _begin(self) -> None:
        self._busy = True
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.status = 0
        self._has_head = False
        self._stays = False
        """It may be used again after this answer."""
        self._surplus = False
        """More has come than was asked for, which is dropped, and the connection with it."""
        self._unsent = False
        """The engine did not want the whole body, so what it reads next would not be a request."""
        self._overhead = 0
        self._complete = False
        self._delimited = False
        """Its head or its chunks say where it ends, not the end of the connection."""
        self._pieces: list[bytes] = []
        self._size = 0
        self._broken: Lost | None = None

    # for the sender

    @property
    def usable(self) -> bool:
        """Free, and still connected."""
        return not self._busy and self._transport is not None and not self._transport.is_closing()

    async def send(self, path: str, headers: Mapping[str, str], body: bytes, *, method: str = "POST") -> None:
        """Send a request and wait for the head of its answer. Raises Lost."""
        self._begin()
        transport = self._transport
        if transport is None or transport.is_closing():
            raise Lost("the connection was closed")
        # An engine may answer before it has read all, and hang up. A write that fails then closes the
        # transport with the answer unread: a second descriptor can still read it.
        spare = _Spare(transport) if len(body) > _SMALL else None
        try:
            await self._write(transport, f"{method} {path}", headers, body)
            while not self._has_head:
                await self._wait()
        except Lost:
            if spare is None or not self._hear_out(spare):
                self.abort()
                raise
        except BaseException:
            self.abort()
            raise
        finally:
            if spare is not None:
                spare.close()

    # for the reader of the answer

    @property
    def content_type(self) -> str:
        """Without its parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def length(self) -> int | None:
        length = self.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None

    @property
    def complete(self) -> bool:
        """All of the answer has come. Only before it is closed."""
        return self._complete

    async def read(self, push: Push | None = None) -> bytes:
        """What has come since; empty bytes at the end. Raises Lost when it was cut off.

        `push` is offered each piece that comes while we wait; we go on waiting as long as it takes them.
        """
        self._push = push
        try:
            while not self._pieces and not self._complete:
                await self._wait()
        finally:
            self._push = None
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces, self._size = [], 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def rest(self, limit: int | None = None) -> bytes:
        """All that is left, or the first `limit` bytes of it. Raises Lost."""
        pieces, size = [], 0
        while (limit is None or size < limit) and (piece := await self.read()):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)[:limit]

    def close(self) -> None:
        """Let go of the answer. If it was not read to its end, the connection is cut: the engine notices.

        Idempotent.
        """
        if not self._busy:
            return
        keep = self._complete and self._delimited and not self._pieces and not (self._surplus or self._unsent)
        self._busy = False
        if keep and self._stays and self.usable:
            self.idle_since = self._loop.time()
            self._on_free(self)
        else:
            self.abort()

    def abort(self) -> None:
        self._busy = False
        self._cut()

    async def _write(
        self, transport: asyncio.Transport, asked: str, headers: Mapping[str, str], body: bytes
    ) -> None:
        lines = [f"{asked} HTTP/1.1\r\nHost: {self.host}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        # The length is said in any case: some engines cannot read a body that comes in chunks.
        lines.append(f"Content-Length: {len(body)}\r\n\r\n")
        head = "".join(lines).encode("utf-8", "surrogateescape")
        if len(body) <= _PIECE:
            transport.write(head + body)
            return
        transport.write(head)
        for start in range(0, len(body), _PIECE):
            if self._writable is not None:
                await self._writable
            else:
                await asyncio.sleep(0)  # an early answer is read before more is written
            if self._has_head or transport.is_closing():
                self._unsent = True
                return
            transport.write(body[start : start + _PIECE])

    def _hear_out(self, spare: _Spare) -> bool:
        """Parse what a closed transport has not read. Whether it was a whole answer."""
        self._broken = None
        for data in spare.rest():
            self.data_received(data)
        return self._complete or (self._has_head and not self._delimited)

    async def _wait(self) -> None:
        if self._broken is not None:
            raise self._broken
        self._news = self._loop.create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._last_byte.at = monotonic()
        if not self._busy:
            self.abort()  # nothing was asked for
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the engine does not speak HTTP: {error}")
        if self._surplus:
            self._cut()
        elif self._overhead > _OVERHEAD and not self._complete:
            self._fail(f"the engine sent more than {format_size(_OVERHEAD)} outside of an answer")
        if self._size > _READ_AHEAD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if self._push is None or self._pieces or self._complete or self._broken is not None:
            self._wake()

    def _fail(self, reason: str) -> None:
        self._broken = Lost(reason)
        self._cut()

    def _cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def eof_received(self) -> None:
        """The engine has said all; the transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by either side."""
        self._transport = None
        ended_so = self._has_head and not self._delimited and exc is None
        if self._broken is None and ended_so:
            # As HTTP/1.0 has it. Whether the answer is whole can be seen from its content alone.
            self._complete = True
        elif self._broken is None and not self._complete:
            self._broken = Lost(str(exc) if exc else "the engine closed the connection")
        self.resume_writing()
        self._wake()

    def pause_writing(self) -> None:
        """The engine does not take what is sent."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """It does again, or never will."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    # called by the parser

    def on_message_begin(self) -> None:
        """An answer begins: the one that was asked for, or one that was not."""
        if self._complete:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which is dropped."""
        if not self._has_head and not self._surplus:
            self.headers.add(name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))

    def on_headers_complete(self) -> None:
        if self._surplus:
            return
        self.status = status = self._parser.get_status_code()
        self._has_head = status >= _INFORMATIONAL
        self._stays = self._parser.should_keep_alive()
        headers = self.headers
        coding = headers.get("Transfer-Encoding", "").lower()
        self._delimited = "Content-Length" in headers or "chunked" in coding or status in (204, 304)

    def on_body(self, data: bytes) -> None:
        self._overhead = 0
        if self._surplus:
            return
        # Once a piece lies here the next ones must queue behind it.
        if self._push is not None and not self._pieces and self._push(data):
            return
        self._pieces.append(data)
        self._size += len(data)

    def on_message_complete(self) -> None:
        """The answer is whole, or was an informational one."""
        if self._has_head:
            self._complete = True
        else:
            self.headers = CIMultiDict()


class _Spare:
    def __init__(self, transport: asyncio.Transport) -> None:
        own = transport.get_extra_info("socket")
        self._socket = socket.fromfd(own.fileno(), own.family, own.type)
        self._socket.setblocking(False)

    def close(self) -> None:
        """Close this one; the other stays as it is."""
        self._socket.close()

    def rest(self) -> Iterator[bytes]:
        """What has arrived and was not read."""
        while True:
            try:
                data = self._socket.recv(_PIECE)
            except OSError:
                return  # nothing more, or the connection was reset
            if not data:
                return
            yield data


class Unreached(Exception):
    """The engine could not be connected to; it has seen nothing of the request."""


class Upstreams:
    """All pools of one front door. Lives in one event loop."""

    def __init__(self, live: Callable[[], Collection[str]]) -> None:
        """`live` tells the endpoints of all engines there are; pools of others are closed in passing."""
        self._pools: dict[str, Pool] = {}
        self._live = live

    async def post(
        self,
        endpoint: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        last_byte: LastByte | None = None,
    ) -> Connection:
        """Send a request and wait for the head of the answer. Raises Unreached or Lost.

        `last_byte` is the clock of the engine there: set whenever it sends anything.
        """
        connection = await self._connected(endpoint, last_byte)
        await connection.send(path, headers, body)
        return connection

    async def get(self, endpoint: str, path: str) -> Connection:
        """The same for a GET. Raises Unreached or Lost."""
        connection = await self._connected(endpoint, None)
        await connection.send(path, {}, b"", method="GET")
        return connection

    async def _connected(self, endpoint: str, last_byte: LastByte | None) -> Connection:
        pool = self._pools.get(endpoint)
        if pool is None:
            # An endpoint is an engine's own and never comes again, so its pool would stay forever.
            live = set(self._live())
            for gone in [known for known in self._pools if known not in live]:
                self._pools.pop(gone).close()
            pool = self._pools[endpoint] = Pool(endpoint, last_byte or LastByte())
        return pool.take() or await pool.connect()

    def close(self) -> None:
        """Close every idle connection; those in use end with their answers."""
        for pool in self._pools.values():
            pool.close()
        self._pools = {}


def dial(path: str) -> socket.socket:
    # Connecting to a unix socket never waits: it is done or refused at once. asyncio takes EAGAIN for "soon"
    # and returns a socket that is not connected, so we do it ourselves.
    dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        dialled.setblocking(False)
        dialled.connect(path)
    except BaseException:
        dialled.close()
        raise
    return dialled


class Pool:
    """The connections to one engine. The last one freed is the first one used again."""

    def __init__(self, endpoint: str, last_byte: LastByte) -> None:
        self._endpoint = endpoint
        self._last_byte = last_byte
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self) -> Connection | None:
        fresh_since = self._loop.time() - KEEP_ALIVE
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since >= fresh_since:
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        delay, waited = 0.002, 0.0
        while True:
            try:
                return await self._connect()
            except OSError as error:
                # A full backlog is no death, and some engines have room for five.
                crowded = here.may_be_crowded(error)
                if not crowded or waited >= _CROWDED:
                    raise Unreached(str(error)) from error
            await asyncio.sleep(delay)
            waited += delay
            delay = min(delay * 2, 0.05)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for connection in self._idle:
            connection.abort()
        self._idle = []

    async def _connect(self) -> Connection:
        connection = Connection(self.free, self._last_byte)
        if self._endpoint.startswith("http://"):
            address = urlsplit(self._endpoint)
            await self._loop.create_connection(lambda: connection, address.hostname or "", address.port or 80)
        else:
            await self._loop.create_unix_connection(lambda: connection, sock=dial(self._endpoint))
        return connection

    def free(self, connection: Connection) -> None:
        """It may be used again."""
        if self._closed:
            connection.abort()
            return
        self._idle.append(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(KEEP_ALIVE, self._sweep)

    def _sweep(self) -> None:
        fresh_since = self._loop.time() - KEEP_ALIVE
        for connection in self._idle:
            if connection.idle_since < fresh_since:
                connection.abort()
        self._idle = [one for one in self._idle if one.usable]
        self._timer = self._loop.call_later(KEEP_ALIVE, self._sweep) if self._idle else None


# Only listed headers pass: an unknown one may carry a client's secret to an engine, or make a browser do what
# the engine says.


def forwarded(request: Request) -> CIMultiDict[str]:
    """A request's headers, as the engine gets them.

    What comes to an engine has been read as JSON. Clients that call it a form (`curl -d` by itself does) are
    understood here, but vLLM would refuse them.
    """
    headers = CIMultiDict(
        [(name, value) for name, value in request.headers.items() if name.lower() in _FORWARDED]
    )
    headers["Content-Type"] = "application/json"
    return headers


def returned(answer: Connection) -> CIMultiDict[str]:
    """An answer's headers, as the client gets them."""
    return CIMultiDict(
        [
            (name, value)
            for name, value in answer.headers.items()
            if name.lower() in _RETURNED and _PLAIN.fullmatch(value)
        ]
    )


async def first_chunk(upstream: Connection) -> bytes:
    """The first bytes of an answer. Raises Lost where there are none."""
    first = await upstream.read()
    if not first and upstream.status == 200 and upstream.length != 0:
        # An answer that is delimited by the end of the connection ends the same way when its engine dies.
        raise Lost("the engine closed the connection")
    return first
