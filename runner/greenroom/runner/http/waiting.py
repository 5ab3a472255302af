"""Comment lines for a streaming client who waits longer than a moment.

Nothing is written before `after` seconds, so that an immediate refusal keeps its status. Then the stream
begins, and its comments say what is going on; clients skip lines that begin with a colon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from aiohttp import web

_log = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
_EVERY = 5.0
"""Seconds between two comments."""


class Waiting:
    """Speaks to one client until there is something better to send."""

    def __init__(
        self, request: web.Request, *, after: float, headers: Mapping[str, str], say: Callable[[], str]
    ) -> None:
        """`say` is asked for one line about what is going on."""
        self._request = request
        self._after = after
        self._headers = headers
        self._say = say
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self.response: web.StreamResponse | None = None
        """The stream, once it has begun."""

    def begin(self) -> None:
        """Start the patience of `after` seconds."""
        self._timer = asyncio.get_running_loop().call_later(self._after, self._lose_patience)

    async def end(self) -> web.StreamResponse | None:
        """Say no more; whoever calls has the stream to himself, if it has begun."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            # Not cancelled but asked to end: it may be in the middle of the head or of a comment.
            self._over.set()
            await self._task
        return self.response

    def cancel(self) -> None:
        """The client has gone, or everything is over. Does not wait."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _lose_patience(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._talk())

    async def _talk(self) -> None:
        response = web.StreamResponse(headers=self._headers)
        response.content_type = EVENT_STREAM
        try:
            await response.prepare(self._request)
            self.response = response
            while not self._over.is_set():
                await response.write(comment(self._say()))
                try:
                    async with asyncio.timeout(min(_EVERY, max(self._after, 0.1))):
                        await self._over.wait()
                except TimeoutError:
                    continue
        except ConnectionError:
            _log.debug("the client left while it waited")


def comment(text: str) -> bytes:
    """One comment of server-sent events; a line end in it would begin an event."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"
