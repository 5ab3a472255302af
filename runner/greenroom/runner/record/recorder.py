"""Records requests that have ended: one thread writes them in batches.

The event loop only appends to a queue, so no request waits for the disk; if it is slow, full or missing, rows
are lost. Not recorded: reads (GET, HEAD, OPTIONS) that succeed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from greenroom.runner.record.bodies import Kept
from greenroom.runner.record.row import LEFT, Note, Row, row_of
from greenroom.runner.record.table import FILE, NotUsable, RecordTable
from greenroom.runner.threads import NoThread, Thread

_log = logging.getLogger(__name__)

_PAUSE = 0.2
"""Seconds to gather notes for one batch."""
MOST = 4_096
"""Maximum length of the queue; further notes are dropped."""
_CLOSING = 3.0
"""Maximum seconds to wait for the thread when closing."""
_TAIL = 4_096
"""Bytes kept of each of the last two pieces of a response, to count its tokens."""
_READS = frozenset({"GET", "HEAD", "OPTIONS"})

Listener = Callable[[list[Row]], None]
Clock = Callable[[], float]


class Recorder:
    """The record of one front door. Its methods are to be called on the event loop."""

    def __init__(self, home: Path, *, keep_for: float, rows: int, clock: Clock = time.time) -> None:
        """Keep rows for `keep_for` seconds, and at most `rows`. 0 of either deletes the record."""
        self.path = home / FILE
        self.on = keep_for > 0 and rows > 0
        self.inside: dict[str, Note] = {}
        """Requests under way, by id."""
        self._clock = clock
        self._table = RecordTable(self.path, keep_for=keep_for, rows=rows)
        self._queue: deque[Note | concurrent.futures.Future[None]] = deque()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        """Set to write without waiting for a full batch."""
        self._closing = False
        self._thread: Thread | None = None
        self._listeners: list[Listener] = []
        self._bodies, self._bodies_of = 0, ""
        self._dropped = 0
        self._trouble = ""
        """Why rows are being lost; empty if they are not."""
        self._lost = 0
        if not self.on:
            self._do(self._remove)

    # on the event loop

    def begin(self, note: Note) -> None:
        note.at, note.began = self._clock(), time.perf_counter()
        if self.on:
            self.inside[note.id] = note

    def end(self, note: Note, now: float) -> None:
        """Queue the note of a request that has ended at `now` (`time.perf_counter`)."""
        if self.inside.pop(note.id, None) is None:
            return
        if note.method in _READS and (note.status < 400 or note.status == LEFT):
            return  # a client that follows a stream, such as a log, ends it by leaving
        note.ended = now
        note.before, note.last = note.before[-_TAIL:], note.last[-_TAIL:]
        if len(self._queue) >= MOST:
            self._dropped += 1
            return
        self._queue.append(note)
        if not self._wake.is_set():
            self._start()

    @property
    def bodies_left(self) -> int:
        """Requests whose bodies are still to be recorded."""
        return self._bodies

    def record_bodies(self, count: int, model_id: str = "") -> None:
        """Record the bodies of the next `count` requests to any model, or to this one. 0 stops recording."""
        self._bodies, self._bodies_of = count if self.on else 0, model_id

    def take_body(self, note: Note, body: bytes) -> None:
        """Keep the body of a request to the selected model. To be called only while `bodies_left`."""
        if self._bodies_of and (note.model is None or note.model.id != self._bodies_of):
            return
        self._bodies -= 1
        note.kept = Kept(body)

    @contextlib.contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Call the listener, on the writing thread, with the rows of requests that have ended."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def running(self) -> list[Row]:
        """Rows of the requests under way."""
        now = time.perf_counter()
        return [row_of(note, now) for note in self.inside.values() if note.method not in _READS]

    async def written(self) -> None:
        """Wait until requests that have ended are in the table, for at most 3 seconds."""
        if self._thread is None or not self.on:
            return
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._queue.append(done)
        self._hurry.set()
        self._start()
        await asyncio.wait([asyncio.wrap_future(done)], timeout=_CLOSING)

    async def close(self) -> None:
        """Write the remaining rows and end the thread, within 3 seconds."""
        if self._thread is None or self._closing:
            return
        if not self.on:
            await asyncio.to_thread(self._thread.join, _CLOSING)
            return
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._queue.append(done)
        self._closing = True
        self._hurry.set()
        self._wake.set()
        await asyncio.wait([asyncio.wrap_future(done)], timeout=_CLOSING)

    def _start(self) -> None:
        if self._thread is None and not self._closing:
            self._do(self._work)
        self._wake.set()

    def _do(self, work: Callable[[], None]) -> None:
        thread = Thread(work, "requests")
        try:
            thread.start()
        except NoThread as error:
            self._queue.clear()
            self._lose(1, str(error))
            return
        self._thread = thread

    # on the thread

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._hurry.wait(_PAUSE)
            self._hurry.clear()
            self._wake.clear()
            taken = [self._queue.popleft() for _ in range(len(self._queue))]
            self._write([one for one in taken if isinstance(one, Note)])
            ends = self._closing and not self._queue
            if ends:
                self._table.close()
            for one in taken:
                if not isinstance(one, Note):
                    one.set_result(None)
            if ends:
                return

    def _write(self, notes: list[Note]) -> None:
        if not notes:
            return
        rows: list[tuple[Row, Kept | None]] = []
        for note in notes:
            try:
                rows.append((row_of(note), note.kept))
            except Exception:  # noqa: BLE001 - a faulty note must not cost the others
                _log.exception("request %s could not be recorded", note.id)
        try:
            self._append(rows)
        finally:
            for listener in tuple(self._listeners):
                listener([row for row, _ in rows])

    def _append(self, rows: list[tuple[Row, Kept | None]]) -> None:
        try:
            replaced = self._table.append(rows, self._clock())
        except NotUsable as error:
            self._lose(len(rows), str(error))
            return
        except Exception as error:  # noqa: BLE001 - no memory, say: the thread must outlive it
            self._table.close()
            self._lose(len(rows), f"{type(error).__name__}: {error}")
            return
        if replaced:
            _log.warning("%s", replaced)
        dropped, self._dropped = self._dropped, 0
        if self._trouble or dropped:
            _log.warning("Requests are recorded in %s again; %d were not.", self.path, self._lost + dropped)
            self._trouble, self._lost = "", 0

    def _lose(self, count: int, why: str) -> None:
        self._lost += count
        if why != self._trouble:
            self._trouble = why
            _log.warning("Requests are served but not recorded in %s: %s.", self.path, why)

    def _remove(self) -> None:
        try:
            self._table.remove()
        except OSError as error:
            _log.warning("The record of requests %s could not be removed: %s.", self.path, error)
