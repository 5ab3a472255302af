"""The connections to engines: one pool an endpoint, as many connections as there are requests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Mapping
from urllib.parse import urlsplit

from greenroom.actors.gates import LastByte
from greenroom.runner.http.wire import Answer, Connection, Lost
from greenroom.runner.systems import here

__all__ = ["Answer", "Lost", "Unreached", "Upstreams"]

_KEEP_ALIVE = 2.0
"""Seconds an idle connection is kept: less than any engine keeps it, so that none is found closed."""
_CROWDED = 10.0
"""Seconds to go on knocking at an engine whose queue of new connections is full."""


class Unreached(Exception):
    """The engine could not be connected to; it has seen nothing of the request."""


class Upstreams:
    """All pools of one front door. Lives in one event loop."""

    def __init__(self, live: Callable[[], Collection[str]]) -> None:
        """`live` tells the endpoints of all engines there are; pools of others are closed in passing."""
        self._pools: dict[str, _Pool] = {}
        self._live = live

    async def post(
        self,
        endpoint: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        last_byte: LastByte | None = None,
    ) -> Answer:
        """Send a request and wait for the head of the answer. Raises Unreached or Lost.

        `last_byte` is the clock of the engine there: set whenever it sends anything.
        """
        pool = self._pools.get(endpoint)
        if pool is None:
            # An endpoint is an engine's own and never comes again, so its pool would stay for ever.
            live = set(self._live())
            for gone in [known for known in self._pools if known not in live]:
                self._pools.pop(gone).close()
            pool = self._pools[endpoint] = _Pool(endpoint, last_byte or LastByte())
        connection = pool.take() or await pool.connect()
        return await connection.send(path, headers, body)

    def close(self) -> None:
        """Close every idle connection; those in use end with their answers."""
        for pool in self._pools.values():
            pool.close()
        self._pools = {}


def _dial(path: str) -> socket.socket:
    # Connecting to a unix socket never waits: it is done or refused at once. asyncio takes EAGAIN for "soon"
    # and hands out a socket that is not connected, so we do it ourselves.
    dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        dialled.setblocking(False)
        dialled.connect(path)
    except BaseException:
        dialled.close()
        raise
    return dialled


class _Pool:
    """The connections to one engine. The last one freed is the first one used again."""

    def __init__(self, endpoint: str, last_byte: LastByte) -> None:
        self._endpoint = endpoint
        self._last_byte = last_byte
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self) -> Connection | None:
        fresh_since = self._loop.time() - _KEEP_ALIVE
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
                if not here.may_be_crowded(error) or waited >= _CROWDED:
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
        connection = Connection(self._free, self._last_byte)
        if self._endpoint.startswith("http://"):
            address = urlsplit(self._endpoint)
            await self._loop.create_connection(lambda: connection, address.hostname or "", address.port or 80)
        else:
            await self._loop.create_unix_connection(lambda: connection, sock=_dial(self._endpoint))
        return connection

    def _free(self, connection: Connection) -> None:
        if self._closed:
            connection.abort()
            return
        self._idle.append(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(_KEEP_ALIVE, self._sweep)

    def _sweep(self) -> None:
        fresh_since = self._loop.time() - _KEEP_ALIVE
        for connection in self._idle:
            if connection.idle_since < fresh_since:
                connection.abort()
        self._idle = [one for one in self._idle if one.usable]
        self._timer = self._loop.call_later(_KEEP_ALIVE, self._sweep) if self._idle else None
