"""Who is being served, and whether he is still there.

A client that leaves must be noticed whatever the host's settings are: aiohttp cancels a handler only
with `handler_cancellation`, which is off by default and not ours to set in somebody else's application.
So one timer looks at the transports of all who are being served, fifty times a second while there is
anybody, and cancels the task of whoever has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from aiohttp import web

_INTERVAL = 0.02
"""Seconds; well below the tenth of a second within which an engine must stop generating for nobody."""

LEFT = 499
"""The status in the access log of a request whose client has left; nobody receives it."""


SERVED: web.RequestKey[int] = web.RequestKey("greenroom.served", int)
"""The status of an answer that was sent whole: a client that hangs up then has not left early."""


class Visitor:
    """One request under way."""

    __slots__ = ("dismissed", "left", "request", "task")

    def __init__(self, request: web.Request, task: asyncio.Task[object]) -> None:
        self.request = request
        self.task = task
        self.left = False
        """The client has gone, and the task was cancelled for it."""
        self.dismissed = False
        """The front door closes, and the task was cancelled for it."""

    def is_here(self) -> bool:
        """True as long as somebody could read an answer."""
        transport = self.request.transport
        return transport is not None and not transport.is_closing()


class Visitors:
    """Everybody inside one front door. Lives in one event loop."""

    def __init__(self) -> None:
        self._inside: set[Visitor] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._nobody: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._inside)

    async def attend(
        self,
        request: web.Request,
        serve: Callable[[], Awaitable[web.StreamResponse]],
        farewell: Callable[[], Awaitable[web.StreamResponse]] | None = None,
    ) -> web.StreamResponse:
        """Serve a request for as long as its client is there.

        When the front door closes, `serve` is cancelled too, and `farewell` makes the last answer.
        """
        task = asyncio.current_task()
        assert task is not None
        visitor = Visitor(request, task)
        self._inside.add(visitor)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._look)
        try:
            return await serve()
        except asyncio.CancelledError:
            if not (visitor.left or visitor.dismissed) or task.uncancel() > 0:
                raise  # cancelled by somebody else, perhaps as well
            if visitor.left or farewell is None or SERVED in request:
                return web.Response(status=request.get(SERVED, LEFT))
            with contextlib.suppress(ConnectionError):  # he may leave at the same moment
                return await farewell()
            return web.Response(status=LEFT)
        except ConnectionError:
            # A write found the transport closed before the timer did.
            if visitor.is_here():
                raise
            return web.Response(status=request.get(SERVED, LEFT))
        finally:
            self._inside.discard(visitor)
            if not self._inside and self._nobody is not None:
                self._nobody.set()

    async def empty(self, within: float) -> bool:
        """Wait until nobody is being served, at most `within` seconds; whether it is so."""
        if self._inside:
            self._nobody = asyncio.Event()
            try:
                async with asyncio.timeout(within):
                    await self._nobody.wait()
            except TimeoutError:
                return False
            finally:
                self._nobody = None
        return True

    def dismiss(self) -> None:
        """End every request with a sentence: the front door closes."""
        for visitor in tuple(self._inside):
            if not visitor.left and not visitor.dismissed:
                visitor.dismissed = True
                visitor.task.cancel()

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        for visitor in tuple(self._inside):
            if not visitor.left and not visitor.dismissed and not visitor.is_here():
                visitor.left = True
                visitor.task.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_INTERVAL, self._look) if self._inside else None
