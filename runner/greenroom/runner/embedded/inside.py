"""Requests that a program makes to the Greenroom inside it: through the whole front door, without a port."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import unquote

from greenroom.actors.kernel.errors import Forked
from greenroom.runner.daemon import Greenroom
from greenroom.runner.embedded.loop_thread import LoopThread
from greenroom.runner.http.app import asgi
from greenroom.runner.http.asgi_adapter import AsgiApplication, Message, Scope

_log = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSE = 5.0
"""Seconds that the front door takes at most to close."""
_AHEAD = 256 * 1024
"""Bytes of a body that may lie unread, in either direction."""

Headers = list[tuple[bytes, bytes]]


class Inside:
    """The front door of a Greenroom for the program that has it: one for each, made when it is first used."""

    def __init__(self, greenroom: Greenroom) -> None:
        self._app = asgi(greenroom)
        self._loop = LoopThread("greenroom-inside")

    @classmethod
    def of(cls, greenroom: Greenroom) -> Inside:
        """That of this Greenroom; it ends with the Greenroom. Raises NoThread."""
        return greenroom.attachments.the_one(cls, lambda: cls(greenroom))

    def ask(self, method: str, raw_path: bytes, query: bytes, headers: Headers) -> InnerRequest:
        """Begin a request. Raises Forked, and ConnectionError once the Greenroom is stopped."""
        path, _, _ = raw_path.partition(b"?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path.decode("ascii", "replace"), errors="surrogateescape"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in headers],
            "client": None,
            "server": None,
        }
        return InnerRequest(self._app, self._loop, scope)

    def close_from_elsewhere(self) -> None:
        """End the requests under way with a sentence, then the thread."""
        if not self._loop.is_current():
            self._loop.begin(self._app.close()).result(2 * _CLOSE)
        self._loop.close()


class Cut(Exception):
    """The answer ended before it was complete."""


class InnerRequest:
    """One request and its answer.

    Each method that returns a future may be called from any thread: what is waited for happens in the loop of
    the front door. `leave` is what a client does that hangs up.
    """

    def __init__(self, app: AsgiApplication, loop: LoopThread, scope: Scope) -> None:
        self._app = app
        self._loop = loop
        self._scope = scope
        self._sent: list[bytes] = []
        self._sent_size = 0
        self._sent_all = False
        self._received_all = False
        self._status = 0
        self._headers: Headers = []
        self._pieces: list[bytes] = []
        self._size = 0
        self._whole = False
        self._over = False
        self._left = False
        self._waiters: list[asyncio.Future[None]] = []
        self._serving: concurrent.futures.Future[None] = loop.begin(self._serve())

    # for the one who asks, in any thread

    def feed(self, piece: bytes) -> concurrent.futures.Future[bool]:
        """Send a piece of the body, empty at its end; False when no more is wanted."""
        return self._do(self._feed(piece))

    def head(self) -> concurrent.futures.Future[tuple[int, Headers]]:
        """Wait for status and headers. The future raises Cut."""
        return self._do(self._head())

    def read(self) -> concurrent.futures.Future[bytes]:
        """What has come of the answer's body since the last time, empty at its end. The future raises Cut."""
        return self._do(self._read())

    def leave(self) -> None:
        """Hang up: a request that is not answered yet is cancelled at once. Idempotent."""
        if not self._serving.done():
            try:
                self._do(self._leave())
            except (ConnectionError, Forked):
                """The front door has ended it already, or it is the parent process's."""

    def _do(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return self._loop.begin(work)

    # in the loop of the front door

    async def _feed(self, piece: bytes) -> bool:
        if not piece:
            self._sent_all = True
        elif not self._over:
            self._sent.append(piece)
            self._sent_size += len(piece)
        self._tell()
        await self._until(lambda: self._sent_size <= _AHEAD or self._over)
        return not self._over

    async def _head(self) -> tuple[int, Headers]:
        await self._until(lambda: self._status > 0 or self._over)
        if not self._status:
            raise Cut("Greenroom has ended the request without an answer.")
        return self._status, self._headers

    async def _read(self) -> bytes:
        await self._until(lambda: bool(self._pieces) or self._whole or self._over)
        piece, self._pieces, self._size = b"".join(self._pieces), [], 0
        self._tell()
        if not piece and not self._whole:
            raise Cut("The answer ended before it was complete.")
        return piece

    async def _leave(self) -> None:
        self._left = True
        self._tell()

    async def _serve(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except ConnectionError:
            """The answer is cut, and reading it raises `Cut`."""
        except Exception:  # noqa: BLE001 - a fault of ours must not look like a client that has left
            _log.exception("a request of this program failed")
        finally:
            self._over = True
            self._tell()

    async def _receive(self) -> Message:
        await self._until(lambda: bool(self._sent) or self._sent_all or self._left)
        if self._left:
            return {"type": "http.disconnect"}
        if self._sent or not self._received_all:
            body, self._sent, self._sent_size = b"".join(self._sent), [], 0
            self._received_all = self._sent_all
            self._tell()
            return {"type": "http.request", "body": body, "more_body": not self._sent_all}
        await self._until(lambda: self._left or self._whole)
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._left:
            raise ConnectionResetError("the client has left")
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
        else:
            if body := message.get("body", b""):
                self._pieces.append(body)
                self._size += len(body)
            self._whole = not message.get("more_body", False)
        self._tell()
        await self._until(lambda: self._size <= _AHEAD or self._left)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
