"""The connections to remote backends: like those to engines, over TLS where the URL says so.

They go where the configuration says and nowhere else: no redirect is followed, no proxy used.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping

from greenroom.actors.gates import LastByte
from greenroom.runner.http.upstream import Connection, Lost, Pool, Unreached, dial
from greenroom.runner.remotes.asking import address, host_header, not_trusted, reason, trust
from greenroom.runner.remotes.watch import Remote
from greenroom.runner.units import format_duration

_CONNECT = 10.0
"""Seconds for a connection, TLS included."""


class TooSilent(Lost):
    """It has a request, and has sent nothing for longer than `timeout`."""


class BadCertificate(Unreached):
    """Its certificate is not trusted."""


class RemoteConnection(Connection):
    """A connection that fails if the other side sends nothing for too long while it has a request."""

    def __init__(self, free: Callable[[Connection], None], last_byte: LastByte, silence: float) -> None:
        super().__init__(free, last_byte)
        self._silence = silence
        self._heard = 0.0
        self.is_fresh = True
        """It has had no request before this one."""

    async def ask(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Send a request and wait for the head of its answer. Raises Lost, of which TooSilent is one."""
        try:
            async with asyncio.timeout(2 * self._silence):  # it may read slowly, but not forever
                await self.send(path, headers, body)
        except TimeoutError:
            raise self._too_silent() from None

    def data_received(self, data: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        super().data_received(data)

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        while True:
            try:
                async with asyncio.timeout_at(self._heard + self._silence):
                    return await super()._wait()
            except TimeoutError:
                if loop.time() - self._heard >= self._silence:
                    self.abort()
                    raise self._too_silent() from None

    def _too_silent(self) -> TooSilent:
        return TooSilent(f"it sent nothing for {format_duration(self._silence)}")


class RemotePool(Pool):
    """Those to one backend."""

    def __init__(self, remote: Remote, last_byte: LastByte) -> None:
        super().__init__(remote.settings.url, last_byte)
        self._remote = remote.settings
        self._clock = last_byte
        self._trust: ssl.SSLContext | None = None

    async def connected(self) -> RemoteConnection:
        """A connection, one that is free if there is any. Raises Unreached."""
        connection = self.take() or await self.fresh()
        assert isinstance(connection, RemoteConnection)
        return connection

    async def fresh(self) -> RemoteConnection:
        """A new connection. Raises Unreached, of which BadCertificate is one."""
        remote = self._remote
        connection = RemoteConnection(self._free_again, self._clock, remote.timeout)
        connection.host = host_header(remote)
        loop = asyncio.get_running_loop()
        try:
            if remote.url.startswith("https:") and self._trust is None:
                self._trust = await asyncio.to_thread(trust, remote)
            async with asyncio.timeout(_CONNECT):
                if remote.url.startswith("unix:"):
                    sock = dial(remote.url.removeprefix("unix:"))
                    await loop.create_unix_connection(lambda: connection, sock=sock)
                else:
                    host, port = address(remote)
                    await loop.create_connection(lambda: connection, host, port, ssl=self._trust)
        except ssl.SSLError as error:
            raise BadCertificate(not_trusted(error).message) from error
        except TimeoutError as error:
            raise Unreached("it did not answer in time") from error
        except OSError as error:
            raise Unreached(reason(error)) from error
        return connection

    def _free_again(self, connection: Connection) -> None:
        if isinstance(connection, RemoteConnection):
            connection.is_fresh = False
        self.free(connection)


class RemotePools:
    """All of one front door. Lives in one event loop."""

    def __init__(self, last_byte: Callable[[str], LastByte]) -> None:
        """`last_byte` is the clock of a backend's gate, by its name."""
        self._last_byte = last_byte
        self._pools: dict[str, RemotePool] = {}

    def of(self, remote: Remote) -> RemotePool:
        pool = self._pools.get(remote.name)
        if pool is None:
            pool = self._pools[remote.name] = RemotePool(remote, self._last_byte(remote.name))
        return pool

    def close(self) -> None:
        """Close every idle connection; those in use end with their answers."""
        for pool in self._pools.values():
            pool.close()
