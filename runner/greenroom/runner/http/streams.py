"""The streams of engines, passed on to clients: whole lines, an error as soon as it is seen, and the end.

An engine's stream goes to its client byte for byte, except for the name of the model; or it is translated
into the form of another family of clients (`Translation`).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.bodies import NOT_UNDERSTOOD
from greenroom.runner.http.clients import ReadWatch
from greenroom.runner.http.port import Request, Stream
from greenroom.runner.http.upstream import Connection, Lost

_ERROR = b'"error"'
"""Part of every event with an error: inside a JSON string the quotes would be escaped."""
_LINE_LIMIT = 4 * 2**20
"""Bytes of one unfinished line that are held back; past it, it passes as it is."""
_DATA = b"data:"
_DONE = b"[DONE]"

_decode = msgspec.json.Decoder().decode


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

    async def pass_on(self, answer: Connection, chunk: bytes) -> None:
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
        """WholeLines are sent, or are about to be."""
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


# translated streams


class Translation(ABC):
    """One request of another family of clients: as a chat for an engine, and the engine's answer in its form.

    The engine gets an OpenAI chat completion, and answers with one: `whole`, or `begin`, any number of
    `event`s and `end`. `error` ends a stream that failed, at any time.
    """

    content_type: str
    """Of a streamed answer."""

    @property
    @abstractmethod
    def chat(self) -> dict[str, Any]:
        """The fields of the chat completion, `model` and `stream` among them."""

    @abstractmethod
    def begin(self) -> bytes:
        """The first bytes of a stream."""

    @abstractmethod
    def event(self, chunk: Mapping[str, Any]) -> bytes:
        """What a `chat.completion.chunk` becomes; may be empty."""

    @abstractmethod
    def end(self) -> bytes:
        """The last bytes of a stream whose answer is whole."""

    @abstractmethod
    def whole(self, completion: Mapping[str, Any]) -> bytes:
        """The body of an answer without a stream, from a `chat.completion`."""

    @abstractmethod
    def error(self, refusal: Refusal, param: str | None, request_id: str) -> bytes:
        """The last bytes of a stream that failed, whether or not it has begun."""


class TranslatedStream:
    """One engine's stream to one client, in the form of the client's family. As `EventStream` otherwise."""

    def __init__(self, request: Request, stream: Stream, watch: ReadWatch, translation: Translation) -> None:
        self._request = request
        self._stream = stream
        self._watch = watch
        self._translation = translation
        self._lines = WholeLines()
        self.whole = False
        self.in_event = False
        """Never: only whole events are written."""
        self._failure: Exception | None = None
        """What a piece that was offered at once has raised; the task raises it again."""

    async def pass_on(self, answer: Connection, chunk: bytes) -> None:
        """See `EventStream.pass_on`."""
        await self._write(self._translation.begin())
        while chunk:
            if self._failure is not None:
                raise self._failure
            await self._write(self._translated(self._lines.feed(chunk)))
            try:
                chunk = await answer.read(self._push)
            except Lost:
                if self.whole:
                    break
                raise
        if not self.whole:
            raise Unfinished("the engine ended its stream before the end of its answer")
        await self._stream.end()

    def _push(self, chunk: bytes) -> bool:
        """Write a piece at once; False leaves it to the task."""
        if not self._stream.keeps_up or _ERROR in (self._lines.held + chunk if self._lines.held else chunk):
            return False
        try:
            data = self._translated(self._lines.feed(chunk))
        except Exception as error:  # noqa: BLE001 - here the connection to the engine would be to blame
            self._failure = error
            return False
        if data:
            self._stream.push(data)
            self._watch.sent += len(data)
        return True

    async def _write(self, data: bytes) -> None:
        if data:
            self._watch.sent += len(data)
            await self._stream.write(data)

    def _translated(self, lines: bytes) -> bytes:
        """Raises Said for an error."""
        event = _error_in(lines) if _ERROR in lines else None
        if event is not None:
            raise Said(event[1])
        pieces = []
        for line in lines.splitlines():
            if not line.startswith(_DATA):
                continue
            data = line[len(_DATA) :].strip()
            if data == _DONE:
                self.whole = True
                self._request.served = self._stream.status
                pieces.append(self._translation.end())
            elif data and not self.whole:
                pieces.append(self._translation.event(_decode(data)))
        return b"".join(pieces)
