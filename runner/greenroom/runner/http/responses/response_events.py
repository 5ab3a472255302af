"""The events of one response that is made in the background, for clients that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.port import EVENT_STREAM, AnyResponse, Request, Stream

_AT_ONCE = 256
"""Events that are written to a client before it is waited for."""


class EventLog:
    """An event's place in it is its sequence number. Lives in one event loop."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._listeners: set[asyncio.Event] = set()
        self.comment = b""
        """The latest."""
        self.comments = 0
        """How many there have been."""
        self.size = 0
        """Bytes."""
        self.ended = False
        self.forgotten = False

    def add(self, event: bytes) -> None:
        self._events.append(event)
        self.size += len(event)
        self._wake()

    def say(self, comment: bytes) -> None:
        """What goes on while there is no event; only those who follow now get it."""
        self.comment, self.comments = comment, self.comments + 1
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def forget(self) -> None:
        """Keep the events no longer; streams that are behind break off."""
        self._events, self.size, self.forgotten = [], 0, True
        self._wake()

    def events(self, first: int) -> list[bytes]:
        """Some events, from this number on."""
        return self._events[first : first + _AT_ONCE]

    def listen(self, news: asyncio.Event) -> Callable[[], None]:
        """Set `news` whenever something changes, until what comes back is called."""
        self._listeners.add(news)
        return lambda: self._listeners.discard(news)

    def _wake(self) -> None:
        for one in self._listeners:
            one.set()


class Follower:
    """One client's stream of a log."""

    def __init__(self, request: Request, log: EventLog, after: int = -1) -> None:
        """`after` is the number of the last event that the client has."""
        self.request = request
        self._log = log
        self._next = after + 1
        self._heard = log.comments
        self._stream: Stream | None = None

    async def serve(self) -> AnyResponse:
        """Replay what there is and follow to the end; called again, go on from there.

        Raises HttpRefusal, before it has begun, and ConnectionError.
        """
        stream = self._stream
        if stream is None:
            if self._log.forgotten:
                raise forgotten()
            headers = {"Cache-Control": "no-cache", "Content-Type": EVENT_STREAM}
            stream = self._stream = await self.request.start(headers=headers)
        news = asyncio.Event()
        stop = self._log.listen(news)
        try:
            while not self._log.forgotten:
                news.clear()
                # Counted before it is written: what is cancelled in between has been written.
                if data := self._taken():
                    await stream.write(data)
                elif self._log.ended:
                    break
                else:
                    await news.wait()
        finally:
            stop()
        if self._log.forgotten:
            self.request.abort()
            raise ConnectionResetError("the events were forgotten")
        self.request.served = stream.status
        await stream.end()
        return stream

    def _taken(self) -> bytes:
        log = self._log
        if events := log.events(self._next):
            self._next += len(events)
            return b"".join(events)
        if log.comments > self._heard:
            self._heard = log.comments
            return log.comment
        return b""


def forgotten() -> HttpRefusal:
    return HttpRefusal(
        400,
        "events_not_kept",
        "The events of this response are no longer kept, or it was not made in the background.",
        advice="Leave out stream to get the response itself.",
        param="stream",
    )
