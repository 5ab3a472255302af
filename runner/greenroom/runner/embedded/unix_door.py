"""The front door on a unix socket, in a thread, for other processes of this user."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Self

from greenroom.actors.kernel.errors import StartFailed
from greenroom.runner.daemon import Greenroom
from greenroom.runner.descriptors import connections_within, limit, open_now
from greenroom.runner.embedded.loop_thread import LoopThread
from greenroom.runner.http.accepting import Connections
from greenroom.runner.http.aiohttp_adapter import ServerRunner, watch
from greenroom.runner.http.app import context_of, front_door
from greenroom.runner.http.unix_socket import UnixListener

_KEEP_ALIVE = 75.0
_CLOSE = 3.0
"""Seconds for the last words to reach their clients."""
_DRAIN = 2.0
"""Seconds that requests under way have to end by themselves."""
_START = 30.0


class UnixDoor:
    """The front door, open on a unix socket until it is closed or the Greenroom stops. A context manager."""

    def __init__(self, greenroom: Greenroom, path: Path, allowed_hosts: Collection[str]) -> None:
        """Raises SocketUnusable, NoThread."""
        self.path = path
        self._greenroom = greenroom
        self._allowed_hosts = allowed_hosts
        self._listener = UnixListener(path)
        self._closed = False
        try:
            self._loop = LoopThread("greenroom-door")
        except BaseException:
            self._close_listener()
            raise
        try:
            self._loop.begin(self._open()).result(_START)
        except BaseException:
            self._loop.close()
            self._close_listener()
            raise
        greenroom.attachments.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Accept no more, end the requests under way, remove the socket. Idempotent, within a bound.

        It waits for all that, so asyncio programs call it in a thread.
        """
        self.close_from_elsewhere()
        self._greenroom.attachments.remove(self)

    def close_from_elsewhere(self) -> None:
        """As `close`, on behalf of the Greenroom that stops."""
        if self._closed:
            return
        self._closed = True
        try:
            self._loop.begin(self._end()).result(_DRAIN + 2 * _CLOSE)
        finally:
            self._loop.close()
            self._close_listener()

    def _close_listener(self) -> None:
        self._listener.remove()
        self._listener.socket.close()

    async def _open(self) -> None:
        self._app = app = front_door(self._greenroom, allowed_hosts=self._allowed_hosts)
        self._runner = runner = ServerRunner(
            app,
            access_log=None,
            keepalive_timeout=_KEEP_ALIVE,
            shutdown_timeout=_CLOSE,
            handle_signals=False,
        )
        # The limit on open files is the host's, so it is not raised.
        self._connections = Connections(self._listener.socket, connections_within(limit(), open_now()))
        watch(app, self._connections.begin, self._connections.end)
        await runner.setup()
        server = runner.server
        assert server is not None
        self._connections.start(server, lambda: server.connections)

    async def _end(self) -> None:
        self._listener.remove()
        await self._connections.stop()
        await context_of(self._app).clients.empty(_DRAIN)
        await self._runner.cleanup()


def serve(
    greenroom: Greenroom, *, uds: str | os.PathLike[str], allowed_hosts: Collection[str] = ()
) -> UnixDoor:
    """Open the front door of a running Greenroom on a unix socket, in a thread: `with serve(…, uds=PATH)`.

    Only the socket's owner may connect (mode 0600). It closes with `close`, with the block, or when the
    Greenroom stops. Clients: `curl --unix-socket PATH http://localhost/…`, `httpx.HTTPTransport(uds=PATH)`.

    Args:
        greenroom: the runner, started.
        uds: the socket's path, 103 bytes at most; `~` is not expanded. Its folder must exist.
        allowed_hosts: values of `Host`, without port, that are accepted beside the loopback names; `*` is
            any.

    Raises:
        StartFailed: the Greenroom does not run.
        SocketUnusable: the path is too long, is no socket, or another program listens there.
        NoThread: the system has no thread left.
    """
    if not greenroom.is_running:
        raise StartFailed("this Greenroom is not running: start it before it is served")
    return UnixDoor(greenroom, Path(uds), allowed_hosts)
