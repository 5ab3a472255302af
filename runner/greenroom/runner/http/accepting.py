"""Accepts clients as long as there are descriptors for them.

Idle connections are closed for new ones. When all connections are in use, a new client waits a moment and is
then refused with a sentence, so the daemon never runs out of descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Sequence

from greenroom.runner.descriptors import PASSING

_log = logging.getLogger(__name__)

_IDLE = 0.5
"""Seconds without a request after which a connection may be closed for a new one."""
_PATIENCE = 1.0
"""Seconds a new connection waits for a place before it is refused."""
_LOOK = 0.05
_PAUSE = 0.1
"""Seconds before the next try after the system had no descriptor."""
_REFUSALS = 16
"""New connections that are being refused at the same time; more are closed without an answer."""
_FAREWELL = 2.0
"""Seconds a refused connection has to send its request and read the refusal."""

Serve = Callable[[], asyncio.BaseProtocol]

_SENTENCE = "All connections are in use. Try again in a moment."


class Connections:
    """The clients of one front context. Lives in one event loop."""

    def __init__(self, listener: socket.socket, most: int) -> None:
        """`listener` listens already and does not block; at most `most` connections are kept."""
        self._listener = listener
        self._most = most
        self._opened: Callable[[], Sequence[asyncio.BaseProtocol]] = tuple
        self._task: asyncio.Task[None] | None = None
        self._busy: dict[object, int] = {}
        """Connections with a request under way, and how many: pipelining makes several."""
        self._quiet_since: dict[object, float] = {}
        self._refusing: set[_Refusal] = set()
        self._full_since = 0.0
        """Since when all connections have been in use; 0 while there is a place, or will be."""
        self._has_said = False

    def begin(self, connection: object) -> None:
        """A request on this connection is being served."""
        self._busy[connection] = self._busy.get(connection, 0) + 1

    def end(self, connection: object) -> None:
        left = self._busy.pop(connection) - 1
        if left:
            self._busy[connection] = left
        self._quiet_since[connection] = time.monotonic()

    def start(self, serve: Serve, opened: Callable[[], Sequence[asyncio.BaseProtocol]]) -> None:
        """Begin to accept: `serve` makes the protocol of a new connection, `opened` lists those there are."""
        self._opened = opened
        self._task = asyncio.get_running_loop().create_task(self._accept(serve))

    async def stop(self) -> None:
        """Accept no more connections; those that are open stay."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._listener.close()
        for refusal in tuple(self._refusing):
            refusal.end()

    async def _accept(self, serve: Serve) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in PASSING:
                    self._say_full(f"there is no file descriptor for another client ({error.strerror})")
                # Else the client left before it was accepted.
                await asyncio.sleep(_PAUSE)
                continue
            try:
                if await self._has_room():
                    await loop.connect_accepted_socket(serve, client)
                elif len(self._refusing) < _REFUSALS:
                    await loop.connect_accepted_socket(lambda: _Refusal(self._refusing), client)
                else:
                    client.close()
            except OSError as error:
                client.close()
                _log.debug("a client disconnected before it was accepted: %s", error)

    async def _has_room(self) -> bool:
        """Whether one more can be let in, now or within a moment."""
        while len(self._opened()) >= self._most and not self._make_room():
            now = time.monotonic()
            if self._quiet_since:
                self._full_since = 0.0  # one of them is let go within the second, or asks something
            else:
                self._full_since = self._full_since or now
                if now - self._full_since >= _PATIENCE:
                    self._say_full(f"all {self._most} connections are in use")
                    return False
            await asyncio.sleep(_LOOK)  # clients come and go without telling us
        self._full_since = 0.0
        self._has_said = False
        return True

    def _make_room(self) -> bool:
        """Close the connection that has been quiet for longest, if there is one to spare."""
        now = time.monotonic()
        here = self._opened()
        # A connection without a request yet counts from when it was first seen here.
        self._quiet_since = {one: self._quiet_since.get(one, now) for one in here if one not in self._busy}
        quiet = min(self._quiet_since.items(), key=lambda one: one[1], default=None)
        if quiet is None or now - quiet[1] < _IDLE:
            return False
        connection = quiet[0]
        del self._quiet_since[connection]
        transport = getattr(connection, "transport", None)
        if transport is not None:
            transport.abort()
        return True

    def _say_full(self, why: str) -> None:
        if not self._has_said:
            _log.warning("new clients are refused: %s; raise the limit on open files (ulimit -n)", why)
        self._has_said = True


class _Refusal(asyncio.Protocol):
    """Tells one newcomer that there is no place, and closes."""

    def __init__(self, among: set[_Refusal]) -> None:
        self._among = among
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._among.add(self)
        self._timer = asyncio.get_running_loop().call_later(_FAREWELL, self.end)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - what it asks makes no difference
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        body = json.dumps({"error": {"message": _SENTENCE, "code": "too_many_connections"}}).encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
        )
        transport.write(head.encode() + body)
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it is gone, whyever
        self._among.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def end(self) -> None:
        """Close it whatever it does."""
        if self._transport is not None:
            self._transport.abort()
