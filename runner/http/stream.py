"""Server-sent events on their way from an engine to a client, with as little between them as possible.

While the client keeps up, a piece that arrives from the engine is written to the client's transport from
within the callback that brought it: no task is woken, which is half of what a token would cost. When the
client does not keep up, pieces are written by the task, which waits until the client has read.
"""

from __future__ import annotations

from aiohttp import web
from greenroom.runner.http.dialects import Lines, Renaming
from greenroom.runner.http.wire import Answer

_UNREAD = 64 * 1024
"""Bytes a client may be behind before the task takes over."""
_TAIL = 1024
"""Bytes of the stream's end that are kept to see whether it is whole."""
_END = b"data: [DONE]"


class Stream:
    """One stream to one client, whose response is prepared."""

    def __init__(self, request: web.Request, response: web.StreamResponse, rename: Renaming | None) -> None:
        self._request = request
        self._response = response
        self._lines = Lines(rename)
        self._tail = b""
        # Writing past aiohttp's writer is right only where we know what it would write.
        self._direct = response.headers.get("Transfer-Encoding") == "chunked" and not response.compression

    async def pass_on(self, answer: Answer, chunk: bytes) -> None:
        """Pass on `chunk` and all that follows. Raises Lost when the engine breaks off.

        Raises ConnectionError when the client has gone.
        """
        push = self._push if self._direct else None
        while chunk:
            self._note(chunk)
            lines = self._lines.feed(chunk)
            if lines:
                await self._response.write(lines)
            chunk = await answer.read(push)

    async def end(self, *, done: bool) -> bool:
        """The engine has said all; end the stream. With `done` it must have said `[DONE]`.

        Returns False, with the stream still open, if it has not.
        """
        if done and not self._tail.rstrip().endswith(_END):
            if b'"error"' not in self._tail:
                return False
            # llama-server ends a stream that failed with an error frame alone; clients wait for the end.
            await self._response.write(self._lines.flush() + b"\n\n" + _END + b"\n\n")
        elif rest := self._lines.flush():
            await self._response.write(rest)
        await self._response.write_eof()
        return True

    def _push(self, chunk: bytes) -> bool:
        """Write a piece at once; False leaves it to the task."""
        transport = self._request.transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > _UNREAD:
            return False
        self._note(chunk)
        lines = self._lines.feed(chunk)
        if lines:
            transport.write(b"%x\r\n%b\r\n" % (len(lines), lines))
        return True

    def _note(self, chunk: bytes) -> None:
        self._tail = (self._tail + chunk)[-_TAIL:]
