"""Models as archives over HTTP: imported from a request's body, exported as a response. A few at once.

Blocking work has threads of its own, so that a client that stalls does not block others. A client that sends
or reads next to nothing is disconnected after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping

from greenroom.actors.values import Model
from greenroom.runner.http.aiohttp_adapter import Patience
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.port import AnyResponse, BodyBroken, Request, Stream
from greenroom.runner.models.store import ModelStore
from greenroom.runner.threads import Cancel, in_thread

_AT_ONCE = 4
_WAITING = 32
"""Clients that wait for their turn."""
_TURN_SECONDS = 60.0
WINDOW = 30.0
_LEAST = 64 * 1024
"""Bytes that have to move within a window of so many seconds, or the client is let go."""


class Archives:
    """Those under way. Lives in one event loop."""

    def __init__(self) -> None:
        self._loads = Turns()
        self._exports = Turns()

    async def load(self, request: Request, store: ModelStore) -> Model:
        """Stream a request's body into the store; both go on side by side, and neither waits in memory.

        Raises:
            HttpRefusal: 400 cut off, 408 too slow, 503 too many.
            JobFailed: it is no model, or cannot be stored.
        """
        async with self._loads.turn():
            return await _load(request, store)

    async def send(
        self, request: Request, headers: Mapping[str, str], store: ModelStore, model: Model
    ) -> AnyResponse:
        """Answer with a model's archive.

        Raises:
            HttpRefusal: 503 too many.
            JobFailed: the model is damaged.
        """
        from greenroom.runner.models.archive import export

        async with self._exports.turn():
            size, pieces = await in_thread(lambda: export(store, model.id))
            with contextlib.closing(_Pieces(pieces)) as archive:
                stream = await request.start(headers=headers, length=size)
                while piece := await in_thread(archive.next):
                    await deliver(request, stream, piece)
                await stream.end()
            return stream


class Turns:
    """A few at once, some more that wait, each for a bounded time."""

    def __init__(self, busy: str = "Too many archives and files are being sent or received.") -> None:
        """`busy` is the sentence for those that are too many."""
        self._busy = busy
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        if self._waiting >= _WAITING:
            raise self._refusal()
        self._waiting += 1
        try:
            async with Patience(_TURN_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            raise self._refusal() from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    def _refusal(self) -> HttpRefusal:
        advice = "Try again when one of them is done."
        return HttpRefusal(503, "busy", self._busy, advice=advice, retry_after=10.0)


async def _load(request: Request, store: ModelStore) -> Model:
    from greenroom.runner.models.archive import load

    cancel = Cancel()
    # Not a pipe: uvloop closes a pipe's descriptor twice, and by then it may be another thread's file.
    ours, theirs = socket.socketpair()

    def store_it() -> Model:
        with theirs, theirs.makefile("rb") as stream:
            return load(store, stream, cancel)

    work = asyncio.ensure_future(in_thread(store_it))
    # Its end is not awaited when the client has left.
    work.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
    _, writer = await asyncio.open_unix_connection(sock=ours)
    transport = writer.transport
    try:
        # A reader that has seen enough closes its end: `work` raises what is wrong.
        with contextlib.suppress(ConnectionError):
            async for chunk in chunks_of(request):
                writer.write(chunk)
                await writer.drain()
                if work.done():
                    break
        transport.close()
        return await asyncio.shield(work)
    except BodyBroken:
        raise HttpRefusal(400, "bad_body", "The archive ended early.") from None
    finally:
        cancel.set()
        if not transport.is_closing():
            transport.abort()


async def chunks_of(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes. Only the time that the client takes counts, not what the disk does."""
    waited, came = 0.0, 0
    while True:
        try:
            async with Patience(WINDOW - waited) as patience:
                chunk = await request.read()
        except TimeoutError:
            raise HttpRefusal(
                408, "body_too_slow", f"Only {came} bytes of the body arrived within {WINDOW:.0f}s."
            ) from None
        if not chunk:
            return
        waited += patience.used
        came += len(chunk)
        if came >= _LEAST:
            waited, came = 0.0, 0
        yield chunk


async def deliver(request: Request, stream: Stream, piece: bytes) -> None:
    """Hand a piece over, little by little: a client that takes nothing is cut off."""
    for start in range(0, len(piece), _LEAST):
        try:
            async with Patience(WINDOW):
                await stream.write(piece[start : start + _LEAST])
        except TimeoutError:
            request.abort()
            raise ConnectionResetError("the client read nothing for too long") from None


class _Pieces:
    """Pieces that are read on threads. A client that leaves may do so while one is being read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces: Iterator[bytes] | None = pieces
        self._lock = threading.Lock()

    def next(self) -> bytes:
        with self._lock:
            return b"" if self._pieces is None else next(self._pieces, b"")

    def close(self) -> None:
        """A read that goes on now ends it afterwards: the files close with the last reference."""
        self._pieces = None
