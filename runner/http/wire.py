"""One connection to an engine: a request out, an answer in, as lean as it can be.

aiohttp's client would do and costs a quarter of a millisecond a request on a small machine, which is most of
what the front door may add. Parsing is llhttp's (httptools), so nothing of the protocol is decided here but
where an answer ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from typing import cast

import httptools
from greenroom.actors.gates import LastByte
from multidict import CIMultiDict

_READ_AHEAD = 256 * 1024
"""Bytes that may lie unread before the engine is made to wait."""
_PIECE = 256 * 1024
"""Bytes that are written to an engine at once: megabytes would hold up every other stream."""
_INFORMATIONAL = 200


Push = Callable[[bytes], bool]
"""Takes a piece of an answer at once, or declines it."""


class Lost(Exception):
    """The engine broke off: before it had answered, or before its answer was whole."""


class Answer:
    """An answer, from its head on. Read it to the end or close it; a connection has one at a time."""

    def __init__(self, connection: Connection, status: int, headers: CIMultiDict[str]) -> None:
        self._connection = connection
        self.status = status
        self.headers = headers
        self.content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        length = headers.get("Content-Length", "")
        self.length = int(length) if length.isdigit() else None

    async def read(self, push: Push | None = None) -> bytes:
        """What has come since; empty bytes at the end. Raises Lost when it was cut off.

        `push` is offered each piece that comes while we wait; we go on waiting as long as it takes them.
        """
        return await self._connection.read(push)

    async def rest(self, limit: int | None = None) -> bytes:
        """All that is left, or the first `limit` bytes of it. Raises Lost."""
        pieces, size = [], 0
        while (limit is None or size < limit) and (piece := await self.read()):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)[:limit]

    def close(self) -> None:
        """Let go of it. If it was not read to its end the connection is cut, by which the engine notices."""
        self._connection.release()


class Connection(asyncio.Protocol):
    """One socket. Made by a pool, which hears by `on_free` when it may be used again."""

    def __init__(self, on_free: Callable[[Connection], None], last_byte: LastByte) -> None:
        """`last_byte` is set whenever something comes."""
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
        self.idle_since = 0.0
        """The loop's time when it was last freed."""

    def _begin(self) -> None:
        self._busy = True
        self._headers: CIMultiDict[str] = CIMultiDict()
        self._has_head = False
        self._complete = False
        self._delimited = False
        """Its end is told by its head or its chunks, not by the end of the connection."""
        self._pieces: list[bytes] = []
        self._size = 0
        self._broken: Lost | None = None

    # asked by whoever sends

    @property
    def usable(self) -> bool:
        """Free, and still connected."""
        return not self._busy and self._transport is not None and not self._transport.is_closing()

    async def send(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a POST and wait for the head of its answer. Raises Lost."""
        self._begin()
        try:
            await self._write(path, headers, body)
            while not self._has_head:
                await self._wait()
        except BaseException:
            self.abort()
            raise
        return Answer(self, self._parser.get_status_code(), self._headers)

    async def read(self, push: Push | None = None) -> bytes:
        """See `Answer.read`."""
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

    def release(self) -> None:
        """The answer is not wanted any more, or read. Idempotent."""
        if not self._busy:
            return
        keep = self._complete and self._delimited and not self._pieces
        self._busy = False
        stays = self._headers.get("Connection", "").lower() != "close"
        if keep and stays and self._parser.get_http_version() != "1.0" and self.usable:
            self.idle_since = self._loop.time()
            self._on_free(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Cut it. Idempotent."""
        self._busy = False
        if self._transport is not None:
            self._transport.abort()

    async def _write(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise Lost("the connection was closed")
        lines = [f"POST {path} HTTP/1.1\r\nHost: localhost\r\n"]
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
            if self._broken is not None:
                raise self._broken
            transport.write(body[start : start + _PIECE])

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

    # told by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is connected."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._last_byte.at = monotonic()
        if not self._busy:
            self.abort()  # nobody has asked
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._broken = Lost(f"the engine does not speak HTTP: {error}")
            self.abort()
        if self._size > _READ_AHEAD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if self._push is None or self._pieces or self._complete or self._broken is not None:
            self._wake()

    def eof_received(self) -> None:
        """The engine has said all; the transport closes itself."""

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed, by whomever."""
        self._transport = None
        if self._has_head and not self._delimited and error is None:
            # As HTTP/1.0 has it. Whether the answer is whole can be seen from its content alone.
            self._complete = True
        elif not self._complete:
            self._broken = self._broken or Lost(str(error) if error else "the engine closed the connection")
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

    # told by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which is dropped."""
        if not self._has_head:
            self._headers.add(name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        status = self._parser.get_status_code()
        self._has_head = status >= _INFORMATIONAL
        headers = self._headers
        coding = headers.get("Transfer-Encoding", "").lower()
        self._delimited = "Content-Length" in headers or "chunked" in coding or status in (204, 304)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
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
            self._headers = CIMultiDict()
