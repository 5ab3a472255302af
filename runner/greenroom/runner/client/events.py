"""Follows the journal: one stream of events, over as many connections as needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Self
from urllib.parse import urlencode

import msgspec

from greenroom.actors.journal.port import Record
from greenroom.runner.client.access import Access
from greenroom.runner.client.async_http import AsyncAnswer, ask
from greenroom.runner.client.calls import Call
from greenroom.runner.client.errors import GreenroomError, NotAvailable, RequestRefused, Unreachable
from greenroom.runner.client.http_client import DaemonResponse, HttpClient
from greenroom.runner.client.streams import AGENT
from greenroom.runner.diagnosis.event_log import AFTER, JOURNAL, Line
from greenroom.runner.diagnosis.stored_events import (
    EventDecoder,
    Since,
    StoredEvent,
    Types,
    event_classes,
    since_text,
    type_tags,
)

_SILENCE = 45.0
"""Seconds; a running Greenroom sends something every 15."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two attempts to find it."""
_TRANSIENT = frozenset((429, 500, 502, 503))
_ANOTHER_JOURNAL = "no_such_event"


class _Told(Line, frozen=True, kw_only=True):
    """A line of `GET /log`, whose data are left as they are."""

    data: msgspec.Raw


_decode = msgspec.json.Decoder(_Told).decode


class EventCall(Call[StoredEvent, None]):
    """The request for the events after the last one taken. It is repeated after each lost connection."""

    method = "GET"
    accept = "application/x-ndjson"
    timeout = _SILENCE

    def __init__(self, since: Since | None, types: Types | None) -> None:
        """Raises TypeError, ValueError."""
        kinds = type_tags(types)
        self._types = event_classes(types)
        self._decoder = EventDecoder(self._types)
        self._kinds = {"kind": ",".join(kinds)} if kinds else {}
        self._journal = ""
        self._last_seq, self._last_at = 0, 0.0
        """Of the last event of an earlier journal, which this one may begin with."""
        self._at = 0.0
        self._from_now = since is None
        self.begin_after("now" if since is None else since_text(since))

    def open(self, access: Access) -> HttpClient:
        """The Greenroom that is asked first; what its start stores counts as new. Raises NotAvailable."""
        runner = access.runner
        if runner is not None:
            self._decoder = EventDecoder(self._types, runner.host_actors)
            if self._from_now and not runner.is_running:
                self.begin_after(str(runner.last_event()))
        return access.http()

    def begin_after(self, after: str) -> None:
        self._after = after
        self.path = f"/log?{urlencode({'follow': 'true', 'after': after, **self._kinds})}"

    def begun(self, headers: Mapping[str, str]) -> bool:
        """The answer has begun; False if it is another journal's, and must be asked for again."""
        journal, after = headers.get(JOURNAL.lower(), ""), headers.get(AFTER.lower(), "")
        if not journal or not after.isdecimal():
            raise Unreachable(self.url, "is an older version, whose journal clients cannot follow")
        if self._journal not in ("", journal):
            self._journal = journal
            self.begin_again()
            return False
        self._journal = journal
        self.begin_after(after)
        return True

    def begin_again(self) -> None:
        """The journal was replaced: its first events may have been taken already."""
        self._last_seq, self._last_at = int(self._after), self._at
        self.begin_after("0")

    def take(self, line: str) -> Iterator[StoredEvent]:
        if not line:
            return
        try:
            told = _decode(line)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Unreachable(self.url, f"sent a line that is not an event ({error})") from error
        self.begin_after(str(told.seq))
        if told.seq <= self._last_seq and told.at <= self._last_at:
            return
        self._at = told.at
        stream, _, version = told.id.rpartition("/")
        data = bytes(told.data).decode()
        record = Record(told.seq, told.at, stream, int(version), told.type, told.schema, told.cause, data)
        yield self._decoder.decode(record, told.text)

    def finish(self) -> None:
        """It never ends by itself."""

    def survives(self, error: GreenroomError) -> bool:
        """Whether it goes on after this error, which came when it was asked again. False: it is over."""
        if isinstance(error, RequestRefused):
            if error.code == _ANOTHER_JOURNAL:
                self.begin_again()
                return True
            if error.status not in _TRANSIENT:
                raise error
        elif isinstance(error, NotAvailable):
            if error.code == "forked":
                raise error
            return error.code != "closed"
        return True


class JournalStream(Iterator[StoredEvent]):
    """The events of a Greenroom, in order, as they are stored; each once.

    It survives lost connections and restarts of the daemon, and ends when it or its client is closed. Any
    thread may close it, even while another waits for the next event.
    """

    def __init__(self, access: Access, call: EventCall) -> None:
        """Begin to follow. Raises GreenroomError."""
        self._access, self._call = access, call
        self._pause = _FIRST_PAUSE
        self._begin_here()
        try:
            self._connect(call.open(access))
        except Unreachable as gone:
            access.lost()
            if gone.sent:
                raise
            # The daemon has moved, or ended: it is looked for again, or started.
            self._connect(call.open(access))

    def _begin_here(self) -> None:
        self._pid = os.getpid()
        self._taking = threading.Lock()
        self._ended = threading.Event()
        self._answer: DaemonResponse | None = None
        self._lines: Iterator[str] = iter(())
        self._connection = contextlib.ExitStack()

    def __next__(self) -> StoredEvent:
        if self._pid != os.getpid():
            # The connection belongs to the parent, which continues to use it.
            was_closed = self._ended.is_set()
            self._connection.close()
            self._begin_here()
            if was_closed:
                self._ended.set()
        with self._taking:
            try:
                return self._next()
            except BaseException:
                # The part of a line read so far is lost: the line is requested again.
                self._let_go()
                raise

    def _next(self) -> StoredEvent:
        while not self._ended.is_set():
            try:
                if self._answer is None:
                    self._connect(self._access.again())
                for line in self._lines:
                    for event in self._call.take(line):
                        self._pause = _FIRST_PAUSE
                        return event
            except GreenroomError as error:
                if not self._ended.is_set() and not self._call.survives(error):
                    break
            self._let_go()
            self._access.lost()
            self._ended.wait(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        raise StopIteration

    def _connect(self, http: HttpClient) -> None:
        call = self._call
        call.url = http.url
        while True:
            opened = http.open(
                call.method, call.path, accept=call.accept, headers=AGENT, timeout=call.timeout
            )
            self._answer = answer = self._connection.enter_context(opened)
            if call.begun(answer.headers):
                break
            self._let_go()
        self._lines = answer.lines()
        if self._ended.is_set():
            answer.interrupt()

    def _let_go(self) -> None:
        self._answer = None
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it, from any thread. Idempotent."""
        self._ended.set()
        if self._pid != os.getpid():
            self._connection.close()
            return
        if (answer := self._answer) is not None:
            answer.interrupt()
        if self._taking.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._taking.release()


class AsyncJournalStream(AsyncIterator[StoredEvent]):
    """The events of a Greenroom, in order, as they are stored; each once: see `JournalStream`.

    It starts on entering `async with`, or when the first event is asked for. A task that is cancelled while
    it waits, as by `asyncio.wait_for`, loses no event.
    """

    def __init__(self, access: Access, call: EventCall) -> None:
        self._access, self._call = access, call
        self._over = threading.Event()
        self._is_begun = False
        self._is_taking = False
        self._pause = _FIRST_PAUSE
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._answer: AsyncAnswer | None = None

    async def __anext__(self) -> StoredEvent:
        if self._is_taking:
            raise RuntimeError("another task is waiting for the next event of this stream")
        self._is_taking = True
        try:
            await self._begin()
            return await self._next()
        except GreenroomError:
            if self._over.is_set():
                raise StopAsyncIteration from None
            raise
        finally:
            self._is_taking = False
            if self._over.is_set():
                self._let_go()

    async def _begin(self) -> None:
        if self._is_begun or self._over.is_set():
            return
        self._loop = asyncio.get_running_loop()
        try:
            await self._connect(await asyncio.to_thread(self._call.open, self._access))
        except Unreachable as gone:
            self._access.lost()
            if gone.sent:
                raise
            await self._connect(await asyncio.to_thread(self._call.open, self._access))
        self._is_begun = True

    async def _next(self) -> StoredEvent:
        while not self._over.is_set():
            try:
                if self._answer is None:
                    await self._connect(await asyncio.to_thread(self._access.again))
                while self._answer is not None and (line := await self._answer.line()) is not None:
                    for event in self._call.take(line):
                        self._pause = _FIRST_PAUSE
                        return event
            except GreenroomError as error:
                if not self._over.is_set() and not self._call.survives(error):
                    break
            self._let_go()
            self._access.lost()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause):
                    await self._wake.wait()
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        raise StopAsyncIteration

    async def _connect(self, http: HttpClient) -> None:
        self._answer = await ask(http, self._call)
        while not self._call.begun(self._answer.headers):
            self._let_go()
            self._answer = await ask(http, self._call)

    def _let_go(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close it, from any task of its loop. Idempotent."""
        self._end()

    def close(self) -> None:
        """Close it, from any thread."""
        self._over.set()
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._over.set()
        self._wake.set()
        self._let_go()

    def __del__(self) -> None:
        answer, loop = self._answer, self._loop
        if answer is not None and loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(answer.close)
