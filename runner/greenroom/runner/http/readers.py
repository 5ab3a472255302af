"""Notices clients that do not read what they are sent.

Such a client may keep its slot while no other request wants it; once others wait, it is cut off after some
time without reading a byte.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import termios
from collections.abc import Callable

from aiohttp import web

_log = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds between two looks, or a quarter of the patience where that is less."""


class Reader:
    """The client of one answer, looked at once a second while the answer is sent."""

    def __init__(
        self, request: web.Request, request_id: str, patience: float, wanted: Callable[[], str]
    ) -> None:
        """`patience` are seconds without a byte taken; 0 is without end.

        `wanted` says who wants the place, in words; empty when nobody does.
        """
        self._request = request
        self._request_id = request_id
        self._patience = patience
        self._wanted = wanted
        self._timer: asyncio.TimerHandle | None = None
        self._taken = 0
        self._since = 0.0
        self.sent = 0
        """Bytes handed to the transport so far; whoever writes adds to it."""

    def begin(self) -> None:
        """Look from now on."""
        if self._patience > 0:
            loop = asyncio.get_running_loop()
            self._since = loop.time()
            self._timer = loop.call_later(self._every(), self._look)

    def end(self) -> None:
        """Look no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _every(self) -> float:
        return min(_LOOK, self._patience / 4)

    def _look(self) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            return
        loop = asyncio.get_running_loop()
        unread = transport.get_write_buffer_size() + _in_flight(transport)
        taken = self.sent - unread
        if unread == 0 or taken > self._taken:
            self._taken, self._since = taken, loop.time()
        idle = loop.time() - self._since
        if idle >= self._patience and (who := self._wanted()):
            _log.warning(
                "%s is cut off: its client read nothing for %.0f s while %s",
                self._request_id,
                idle,
                who,
            )
            transport.abort()
            return
        self._timer = loop.call_later(self._every(), self._look)


def _in_flight(transport: asyncio.BaseTransport) -> int:
    """Bytes the system holds that the other side has not taken; 0 where it does not tell."""
    own = transport.get_extra_info("socket")
    told = array.array("i", [0])
    try:
        fcntl.ioctl(own.fileno(), termios.TIOCOUTQ, told)
    except (OSError, AttributeError):
        return 0
    return max(0, told[0])
