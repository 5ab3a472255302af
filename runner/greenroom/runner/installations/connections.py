"""Connections that can be ended from another thread while they wait for an answer's first byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

T = TypeVar("T")

_here = threading.local()


class Exchange:
    """One request and its answer."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._ended = False
        self._socket: socket.socket | None = None

    def carry_out(self, call: Callable[[], T]) -> T:
        """Make the call; connections it uses on this thread belong to this exchange."""
        _here.exchange = self
        try:
            return call()
        finally:
            _here.exchange = None
            with self._guard:
                self._socket = None

    def uses(self, found: socket.socket | None) -> None:
        """From now on `end` is about this one: an answer without a length takes it from its connection."""
        with self._guard:
            self._socket = found
            ended = self._ended
        if ended:
            raise TimeoutError("this answer is no longer needed")

    def end(self) -> None:
        """Wake whoever waits for the answer. A connection that is being made stays as it is."""
        with self._guard:
            self._ended = True
            found = self._socket
        if found is not None:
            with suppress(OSError, ValueError):
                # Of the plain socket: a TLS one would first take leave, and may be busy in another thread.
                socket.socket.shutdown(found, socket.SHUT_RDWR)


class _Watched:
    """Says which exchange it works for."""

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._told()

    def request(self, *arguments: Any, **named: Any) -> None:
        self._told()
        super().request(*arguments, **named)  # type: ignore[misc]

    def _told(self) -> None:
        exchange = getattr(_here, "exchange", None)
        if exchange is not None:
            found = self.sock  # type: ignore[attr-defined]
            exchange.uses(found if isinstance(found, socket.socket) else None)


class _Http(_Watched, HTTPConnection):
    pass


class _Https(_Watched, HTTPSConnection):
    pass


class HttpPool(HTTPConnectionPool):
    """Of connections that can be ended."""

    ConnectionCls = _Http


class HttpsPool(HTTPSConnectionPool):
    """Of connections that can be ended."""

    ConnectionCls = _Https
