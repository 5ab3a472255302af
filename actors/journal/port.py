"""The journal's port: what a store of events must do, whoever keeps it.

JournalError
├── NotWritten        known not written (disk full, refused, cannot be encoded): nothing changed
├── JournalFailed     unknown whether written (fsync or I/O error): never retried, the system stops
├── JournalDamaged    what is stored is not what was written; `seq` is the first bad row
├── JournalTooNew     written by a newer Greenroom
└── JournalBusy       another process writes to it; `pid` is that process
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec


class JournalError(Exception):
    """Base of everything a journal raises."""


class NotWritten(JournalError):
    """The batch is known not to be stored; the store is as it was and may take others later."""


class JournalFailed(JournalError):
    """It is unknown whether the batch is stored. The journal accepts nothing more."""


class JournalDamaged(JournalError):
    """A stored row is missing or not what was written."""

    def __init__(self, message: str, seq: int) -> None:
        super().__init__(message)
        self.seq = seq


class JournalTooNew(JournalError):
    """The log format is newer than this program."""


class JournalBusy(JournalError):
    """Another writer holds the journal."""

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One event to be stored."""

    stream: str
    version: int
    """1 for the first event of its stream; the store refuses a version that is there or leaves a gap."""
    type: str
    schema: int
    cause: str
    data: str
    """JSON text."""
    at: float
    """Wall clock, seconds."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One stored event."""

    seq: int
    at: float
    stream: str
    version: int
    type: str
    schema: int
    cause: str
    data: str

    @property
    def id(self) -> str:
        """`stream/version`: what `cause` columns refer to."""
        return f"{self.stream}/{self.version}"


class Journal(Protocol):
    """An append-only log with one writer."""

    def append(self, batch: Sequence[Entry], *, urgent: bool = False) -> list[Record]:
        """Store the batch atomically and durably; return once it is. Callable from any thread.

        Raises NotWritten or JournalFailed.
        """
        ...

    def read(self, *, after: int = 0, stream: str | None = None) -> Iterator[Record]:
        """Every record with `seq > after` in order, checked; with `stream` only those of that stream.

        Raises JournalDamaged or JournalTooNew.
        """
        ...

    def close(self) -> None:
        """Finish what was accepted and let go of the files. Idempotent."""
        ...
