"""The journal in memory: for tests, and for hosts that want no history after they end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from greenroom.actors.journal.chain import Chain, Draft, checked, records
from greenroom.actors.journal.port import Entry, JournalFailed, NotWritten, Record

Fault = Callable[[tuple[Entry, ...]], None]
"""Called with a batch; may raise what a store would."""


class MemoryJournal:
    """Keeps its rules as strictly as a store on disk does.

    `records` is a past to begin with, such as another's `records`: a restart in a test.
    `before_append` and `after_append` are called around storing a batch: whatever the first raises, the
    batch is not stored; whatever the second raises, it is, and the caller cannot know. Once one
    of them raises JournalFailed the journal accepts nothing more, as the port says.
    """

    def __init__(
        self,
        records: Iterable[Record] = (),
        *,
        before_append: Fault | None = None,
        after_append: Fault | None = None,
    ) -> None:
        self._chain = Chain()
        self._records: list[Record] = []
        self._lock = threading.Lock()
        self._closed = False
        self._failure = ""
        self._before = before_append
        self._after = after_append
        for record in records:
            self._store((as_entry(record),))

    @property
    def records(self) -> tuple[Record, ...]:
        with self._lock:
            return tuple(self._records)

    def append(self, batch: Sequence[Entry], *, urgent: bool = False) -> list[Record]:  # noqa: ARG002
        """See `Journal.append`; there is always space, so `urgent` changes nothing."""
        entries = checked(batch)
        with self._lock:
            if self._failure:
                raise JournalFailed(self._failure)
            if self._closed:
                raise NotWritten("the journal is closed")
            try:
                if self._before is not None:
                    self._before(entries)
                stored = self._store(entries)
                if self._after is not None:
                    self._after(entries)
            except JournalFailed as failure:
                self._failure = str(failure)
                raise
            return stored

    def read(self, *, after: int = 0, stream: str | None = None) -> Iterator[Record]:
        with self._lock:
            kept = self._records[after:]
        return (record for record in kept if stream is None or record.stream == stream)

    def close(self) -> None:
        """See `Journal.close`; what was stored can still be read."""
        with self._lock:
            self._closed = True

    def _store(self, entries: tuple[Entry, ...]) -> list[Record]:
        draft = Draft(self._chain)
        stored = records(draft.add(entries))
        draft.accept()
        self._records += stored
        return stored


def as_entry(record: Record) -> Entry:
    """The entry that, appended at the same place, gives this record."""
    return Entry(
        stream=record.stream,
        version=record.version,
        type=record.type,
        schema=record.schema,
        cause=record.cause,
        data=record.data,
        at=record.at,
    )
