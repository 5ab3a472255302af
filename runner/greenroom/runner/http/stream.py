"""Server-sent events on their way from an engine to a client, with as little between them as possible.

While the client keeps up, a piece that arrives from the engine is written to the client's transport from
within the callback that brought it: no task is woken, which is half of what a token would cost. When the
client does not keep up, pieces are written by the task, which waits until the client has read.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from greenroom.runner.http.bodies import NOT_UNDERSTOOD
from greenroom.runner.http.dialects import Lines, Renaming
from greenroom.runner.http.readers import Reader
from greenroom.runner.http.visitors import SERVED
from greenroom.runner.http.wire import Answer, Lost

_UNREAD = 64 * 1024
"""Bytes a client may be behind before the task takes over."""
_ERROR = b'"error"'
"""What an event that tells of an error has in it: inside a JSON string the quotes would be escaped."""


class Unfinished(Lost):
    """The stream has an end, and the answer in it has none: the engine lives."""


class Said(Exception):
    """The engine has sent an error as an event of its stream."""

    def __init__(self, event: bytes) -> None:
        super().__init__("the engine ended its stream with an error")
        self.event = event
        """Its JSON."""


class Stream:
    """One stream to one client, whose response is prepared."""

    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        reader: Reader,
        rename: Renaming | None,
        end: bytes = b"",
    ) -> None:
        """`end` begins the last event of a whole answer, such as `data: [DONE]`; empty: there is none."""
        self._request = request
        self._response = response
        self._reader = reader
        self._lines = Lines(rename)
        self._end = end
        self._tail = b"\n\n"
        self.whole = False
        """The last event of a whole answer was sent."""
        # Writing past aiohttp's writer is right only where we know what it would write.
        self._direct = response.headers.get("Transfer-Encoding") == "chunked" and not response.compression

    @property
    def in_event(self) -> bool:
        """Part of an event was sent, and its end was not."""
        return self._tail != b"\n\n"

    async def pass_on(self, answer: Answer, chunk: bytes) -> None:
        """Pass on `chunk` and all that follows, to its end.

        Raises Lost when the engine breaks off, Said when it tells of an error, and ConnectionError when the
        client has gone.
        """
        push = self._push if self._direct else None
        while chunk:
            await self._write(self._lines.feed(chunk))
            try:
                chunk = await answer.read(push)
            except Lost:
                if self.whole:
                    break
                raise
        await self._write(self._lines.flush())
        if not self.whole and self._end:
            raise Unfinished("the engine ended its stream before the end of its answer")
        self.whole = True
        self._request[SERVED] = self._response.status
        await self._response.write_eof()

    async def _write(self, lines: bytes) -> None:
        if not lines:
            return
        event = _error_in(lines) if _ERROR in lines else None
        if event is not None:
            await self._send(lines[: event[0]])
            raise Said(event[1])
        await self._send(lines)

    async def _send(self, lines: bytes) -> None:
        if lines:
            self._note(lines)
            await self._response.write(lines)

    def _push(self, chunk: bytes) -> bool:
        """Write a piece at once; False leaves it to the task."""
        transport = self._request.transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > _UNREAD:
            return False
        if _ERROR in (self._lines.held + chunk if self._lines.held else chunk):
            return False
        lines = self._lines.feed(chunk)
        if lines:
            transport.write(b"%x\r\n%b\r\n" % (len(lines), lines))
            self._note(lines)
        return True

    def _note(self, lines: bytes) -> None:
        """Lines are sent, or are about to be."""
        self._reader.sent += len(lines)
        self._tail = (self._tail + lines)[-2:] if len(lines) < 2 else lines[-2:]
        if self._end and self._end in lines and (lines.startswith(self._end) or b"\n" + self._end in lines):
            self.whole = True
            # Clients hang up at this: then they have had all of it.
            self._request[SERVED] = self._response.status


def _error_in(lines: bytes) -> tuple[int, bytes] | None:
    """The JSON of the first event that tells of an error, and where that event begins."""
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
