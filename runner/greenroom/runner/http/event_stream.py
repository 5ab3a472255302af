"""One engine's stream of events, passed on to one client, and whether that client reads it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from greenroom.runner.http.bodies import NOT_UNDERSTOOD
from greenroom.runner.http.long_deltas import LONG, with_short_lines
from greenroom.runner.http.port import EVENT_STREAM, Request, Stream
from greenroom.runner.http.translation import Translation
from greenroom.runner.http.upstream import Connection, Lost

_log = logging.getLogger(__name__)

_ERROR = b'"error"'
"""Part of every event with an error: inside a JSON string the quotes would be escaped."""
_READ_LOOK = 1.0
"""Seconds between two looks at what a client has read, or a quarter of the patience where that is less."""
_LINE_LIMIT = 4 * 2**20
"""Bytes of one unfinished line that are held back; past it, it passes as it is."""


class ReadWatch:
    """Cuts off a client that does not read its answer, once other requests wait for its slot."""

    def __init__(self, request: Request, patience: float, wanted: Callable[[], str]) -> None:
        """`patience` are seconds without a byte taken; 0 is without end.

        `wanted` says who waits for the slot, in words; empty when no request does.
        """
        self._request = request
        self._patience = patience
        self._wanted = wanted
        self._timer: asyncio.TimerHandle | None = None
        self._taken = 0
        self._since = 0.0
        self.sent = 0
        """Bytes written to the client so far; the writer adds to it."""

    def begin(self) -> None:
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
        return min(_READ_LOOK, self._patience / 4)

    def _look(self) -> None:
        request = self._request
        if request.gone:
            return
        loop = asyncio.get_running_loop()
        unread = request.unread()
        taken = self.sent - unread
        if unread == 0 or taken > self._taken:
            self._taken, self._since = taken, loop.time()
        idle = loop.time() - self._since
        if idle >= self._patience and (who := self._wanted()):
            request.note.fault = "cut"
            _log.warning(
                "%s was disconnected: its client read nothing for %.0f s while %s", request.id, idle, who
            )
            request.abort()
            return
        self._timer = loop.call_later(self._every(), self._look)


class Held(Stream):
    """An answer that is kept here, to be sent as a whole."""

    content_type = EVENT_STREAM

    def __init__(self, status: int) -> None:
        self.status = status
        self.body = b""

    @property
    def keeps_up(self) -> bool:
        return True

    def push(self, data: bytes) -> None:
        self.body += data

    async def write(self, data: bytes) -> None:
        self.body += data

    async def end(self) -> None:
        """There is nothing to send."""


class WholeLines:
    """Passes whole lines on and holds back the beginning of one.

    A client can do nothing with half a line, and if the engine dies there, an error frame must not be
    glued to it.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    @property
    def held(self) -> bytes:
        """The beginning of a line that is held back."""
        return self._rest

    def feed(self, chunk: bytes) -> bytes:
        """The whole lines there are now."""
        if self._rest or not chunk.endswith(b"\n"):
            data = self._rest + chunk
            end = len(data) if len(data) > _LINE_LIMIT else data.rfind(b"\n") + 1
            chunk, self._rest = data[:end], data[end:]
        return chunk

    def flush(self) -> bytes:
        """What was held back, at the end."""
        rest, self._rest = self._rest, b""
        return rest


class Unfinished(Lost):
    """The stream has an end, and the answer in it has none: the engine lives."""


class Said(Exception):
    """The engine has sent an error as an event of its stream."""

    def __init__(self, event: bytes) -> None:
        super().__init__("the engine ended its stream with an error")
        self.event = event
        """Its JSON."""


class EventStream:
    """One engine's stream to one client, whose answer has begun."""

    def __init__(
        self,
        request: Request,
        stream: Stream,
        watch: ReadWatch,
        change: Callable[[bytes], bytes] | Translation | None,
        end: bytes = b"",
    ) -> None:
        """`change` makes the client's bytes of whole lines.

        `end` begins the last event of a whole answer, such as `data: [DONE]`; empty: there is none.
        """
        self._request = request
        self._note = request.note
        self._stream = stream
        self._watch = watch
        self._lines = WholeLines()
        self._change = change
        self._end = end
        self._tail = b"\n\n"
        self.whole = False
        """The last event of a whole answer was sent."""

    @property
    def _done(self) -> bool:
        return isinstance(self._change, Translation) and self._change.done

    @property
    def in_event(self) -> bool:
        """Part of an event was sent, and its end was not."""
        return self._tail != b"\n\n"

    async def pass_on(self, answer: Connection, chunk: bytes) -> None:
        """Pass on `chunk` and all that follows, to its end.

        Raises Lost when the engine breaks off, Said when it sends an error, and ConnectionError when the
        client has left.
        """
        while chunk:
            if not self._done:
                await self._write(self._lines.feed(chunk))
            if self._done:
                self._lines.flush()  # what the engine has said beyond the end
                break
            try:
                chunk = await answer.read(self._push)
            except Lost:
                if self.whole:
                    break
                raise
        await self._write(self._lines.flush())
        if not self.whole and self._end:
            raise Unfinished("the engine ended its stream before the end of its answer")
        self.whole = True
        self._request.served = self._stream.status
        await self._stream.end()

    async def _write(self, lines: bytes) -> None:
        if not lines:
            return
        event = _error_in(lines) if _ERROR in lines else None
        if event is not None:
            await self._send(lines[: event[0]])
            raise Said(event[1])
        await self._send(lines)

    async def _send(self, lines: bytes) -> None:
        if lines and (data := self._changed(lines)):
            await self._stream.write(data)

    def _push(self, chunk: bytes) -> bool:
        """Write a piece at once; False leaves it to the task."""
        if self._done or not self._stream.keeps_up:
            return False
        if _ERROR in (self._lines.held + chunk if self._lines.held else chunk):
            return False
        if (lines := self._lines.feed(chunk)) and (data := self._changed(lines)):
            self._stream.push(data)
        return True

    def _changed(self, lines: bytes) -> bytes:
        """The client's bytes of whole lines that are about to be sent."""
        note = self._note
        note.before, note.last = note.last, lines
        note.frames += lines.count(b"\n\n")
        short = with_short_lines(lines) if len(lines) > LONG else lines
        data = short if self._change is None else self._change(short)
        self._watch.sent += len(data)
        self._tail = (self._tail + data)[-2:] if len(data) < 2 else data[-2:]
        ends = bool(self._end) and self._end in lines
        if self._done or (ends and (lines.startswith(self._end) or b"\n" + self._end in lines)):
            self.whole = True
            # Clients hang up at this: then they have had all of it.
            self._request.served = self._stream.status
        return data


def _error_in(lines: bytes) -> tuple[int, bytes] | None:
    """The JSON of the first event with an error, and where that event begins."""
    begin = offset = 0
    for line in lines.splitlines(keepends=True):
        if line.startswith((b"data:", b"error:")) and _ERROR in line:
            data = line.partition(b":")[2].strip()
            said: object = None
            try:
                said = msgspec.json.decode(data)
            except NOT_UNDERSTOOD:
                said = {"error": {}} if line.startswith(b"error:") else None
            if line.startswith(b"error:") or (
                isinstance(said, dict) and (said.get("error") or said.get("type") == "error")
            ):
                return begin, data
        offset += len(line)
        if not line.strip():
            begin = offset
    return None
