"""Server-sent events on their way to a client, with as little in between as possible.

While the client keeps up, a piece that arrives from the engine is written to the client from within the
callback that brought it: no task is woken, which is half of what a token would cost. When the client does not
keep up, pieces are written by the task, which waits until the client has read.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping

import msgspec

from greenroom.runner.http.bodies import NOT_UNDERSTOOD
from greenroom.runner.http.clients import ReadWatch
from greenroom.runner.http.port import Request, Stream
from greenroom.runner.http.upstream import EngineResponse, Lost

_log = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
_ERROR = b'"error"'
"""Part of every event with an error: inside a JSON string the quotes would be escaped."""
_LINE_LIMIT = 4 * 2**20
"""Bytes of one unfinished line that are held back; past it, it passes as it is."""
_EVERY = 5.0
"""Seconds between two comments."""


class Renaming:
    """Gives the model in an answer the name the client knows it by."""

    def __init__(self, spoken: str, asked: str) -> None:
        self._pattern = re.compile(rb'"model"(\s*:\s*)' + re.escape(msgspec.json.encode(spoken)))
        self._name = msgspec.json.encode(asked)

    def __call__(self, body: bytes) -> bytes:
        """Whole lines, or a whole body."""
        return self._pattern.sub(lambda match: b'"model"' + match.group(1) + self._name, body)


class WholeLines:
    """Passes whole lines on and holds back the beginning of one.

    A client can do nothing with half a line, and if the engine dies there, an error frame must not be
    glued to it.
    """

    __slots__ = ("_rename", "_rest")

    def __init__(self, rename: Renaming | None = None) -> None:
        self._rename = rename
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
        return chunk if self._rename is None else self._rename(chunk)

    def flush(self) -> bytes:
        """What was held back, at the end."""
        rest, self._rest = self._rest, b""
        return rest if self._rename is None else self._rename(rest)


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
        self, request: Request, stream: Stream, watch: ReadWatch, rename: Renaming | None, end: bytes = b""
    ) -> None:
        """`end` begins the last event of a whole answer, such as `data: [DONE]`; empty: there is none."""
        self._request = request
        self._stream = stream
        self._watch = watch
        self._lines = WholeLines(rename)
        self._end = end
        self._tail = b"\n\n"
        self.whole = False
        """The last event of a whole answer was sent."""

    @property
    def in_event(self) -> bool:
        """Part of an event was sent, and its end was not."""
        return self._tail != b"\n\n"

    async def pass_on(self, answer: EngineResponse, chunk: bytes) -> None:
        """Pass on `chunk` and all that follows, to its end.

        Raises Lost when the engine breaks off, Said when it sends an error, and ConnectionError when the
        client has left.
        """
        while chunk:
            await self._write(self._lines.feed(chunk))
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
        if lines:
            self._note(lines)
            await self._stream.write(lines)

    def _push(self, chunk: bytes) -> bool:
        """Write a piece at once; False leaves it to the task."""
        if not self._stream.keeps_up or _ERROR in (self._lines.held + chunk if self._lines.held else chunk):
            return False
        lines = self._lines.feed(chunk)
        if lines:
            self._stream.push(lines)
            self._note(lines)
        return True

    def _note(self, lines: bytes) -> None:
        """Lines are sent, or are about to be."""
        self._watch.sent += len(lines)
        self._tail = (self._tail + lines)[-2:] if len(lines) < 2 else lines[-2:]
        if self._end and self._end in lines and (lines.startswith(self._end) or b"\n" + self._end in lines):
            self.whole = True
            # Clients hang up at this: then they have had all of it.
            self._request.served = self._stream.status


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


class KeepAlive:
    """Comment lines for a streaming client that waits longer than a moment.

    Nothing is written before `after` seconds, so that an immediate refusal keeps its status. Then the stream
    begins, and its comments say what is going on; clients skip lines that begin with a colon.
    """

    def __init__(
        self, request: Request, *, after: float, headers: Mapping[str, str], say: Callable[[], str]
    ) -> None:
        """`say` is asked for one line about what is going on."""
        self._request = request
        self._after = after
        self._headers = {**headers, "Content-Type": EVENT_STREAM}
        self._say = say
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self.stream: Stream | None = None
        """The answer, once it has begun."""

    def begin(self) -> None:
        """Count the `after` seconds from now."""
        self._timer = asyncio.get_running_loop().call_later(self._after, self._start_talking)

    async def end(self) -> Stream | None:
        """Say no more; from now on the caller alone writes to the stream, if it has begun."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            # Not cancelled but asked to end: it may be in the middle of the head or of a comment.
            self._over.set()
            await self._task
        return self.stream

    def cancel(self) -> None:
        """The client has left, or everything is over. Does not wait."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _start_talking(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._talk())

    async def _talk(self) -> None:
        try:
            stream = self.stream = await self._request.start(headers=self._headers)
            while not self._over.is_set():
                await stream.write(comment(self._say()))
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
