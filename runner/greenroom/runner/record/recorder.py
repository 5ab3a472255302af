"""Takes the notes of requests that have ended, and has one thread write them, some at a time.

The event loop only appends to a list: a disk that is slow, full or gone costs rows, and no request waits for
it. Reads that succeed are not recorded, only what models answer, what changes something, and refusals.
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
"""Seconds that notes are gathered before they are written together."""
_MOST = 4_096
"""Notes that wait to be written; more are dropped."""
_CLOSING = 3.0
"""Seconds that the last notes may take."""
_TAIL = 4_096
"""Bytes of an answer that are kept from each end until its tokens are known."""
_READS = frozenset({"GET", "HEAD", "OPTIONS"})

Listener = Callable[[list[Row]], None]
Clock = Callable[[], float]


class Recorder:
    """The record of one front door. `begin`, `end` and the rest are for its event loop."""

    def __init__(self, home: Path, *, keep_for: float, rows: int, clock: Clock = time.time) -> None:
        """Keeps so many seconds and so many rows; 0 of either keeps none, and removes what there is."""
        self.path = home / FILE
        self.on = keep_for > 0 and rows > 0
        self.inside: dict[str, Note] = {}
        """Requests under way, by id."""
        self._clock = clock
        self._table = RecordTable(self.path, keep_for=keep_for, rows=rows)
        self._queue: deque[Note | concurrent.futures.Future[None]] = deque()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        """Set when the notes are to be written at once."""
        self._closing = False
        self._thread: Thread | None = None
        self._listeners: list[Listener] = []
        self._bodies, self._bodies_of = 0, ""
        self._dropped = 0
        self._trouble = ""
        """Why rows are being lost; empty while they are not."""
        self._lost = 0
        if not self.on:
            self._do(self._remove)

    # on the event loop

    def begin(self, note: Note) -> None:
        """A request has arrived."""
        note.at, note.began = self._clock(), time.perf_counter()
        if self.on:
            self.inside[note.id] = note

    def end(self, note: Note, now: float) -> None:
        """It has been answered; `now` is by `time.perf_counter`."""
        if self.inside.pop(note.id, None) is None:
            return
        if note.method in _READS and (note.status < 400 or note.status == LEFT):
            return  # what is followed ends when its client leaves
        note.ended = now
        note.before, note.last = note.before[-_TAIL:], note.last[-_TAIL:]
        if len(self._queue) >= _MOST:
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
        """Record what is said in the next so many requests to models, or to this one; 0 ends it."""
        self._bodies, self._bodies_of = count if self.on else 0, model_id

    def take_body(self, note: Note, body: bytes) -> None:
        """Keep what a request says, if that was asked for. Only while `bodies_left`."""
        if self._bodies_of and (note.model is None or note.model.id != self._bodies_of):
            return
        self._bodies -= 1
        note.kept = Kept(body)

    @contextlib.contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Have it called, on the writing thread, with the rows of requests as they end."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def running(self) -> list[Row]:
        """The requests under way, as far as they have come."""
        now = time.perf_counter()
        return [row_of(note, now) for note in self.inside.values() if note.method not in _READS]

    async def written(self) -> None:
        """Wait until all that has ended is in the table, within a bound."""
        if self._thread is None or not self.on:
            return
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._queue.append(done)
        self._hurry.set()
        self._start()
        await asyncio.wait([asyncio.wrap_future(done)], timeout=_CLOSING)

    async def close(self) -> None:
        """Write the last rows, within a bound, and end."""
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
            except Exception:  # noqa: BLE001 - one that cannot be told must not cost the others
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
