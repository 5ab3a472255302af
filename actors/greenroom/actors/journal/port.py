"""The journal's port: what every store of events must do, and what it raises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec


class JournalError(Exception):
    """Base of everything a journal raises."""


class NotWritten(JournalError):
    """The batch is known not to be stored (refused, not encodable, closed); nothing has changed."""


class JournalFull(NotWritten):
    """There is no space for the batch. Urgent batches may still be taken; all are when space is back."""


class JournalFailed(JournalError):
    """It is unknown whether the batch is stored. The journal accepts nothing more, and the system stops."""


class JournalDamaged(JournalError):
    """A stored row is missing or not what was written; `seq` is the first such row; those before are good."""

    def __init__(self, message: str, seq: int) -> None:
        super().__init__(message)
        self.seq = seq


class JournalTooNew(JournalError):
    """Written by a newer Greenroom."""


class EventChanged(JournalError):
    """A stored event does not fit the class that reads it: the code has changed, not the journal."""

    def __init__(self, message: str, seq: int) -> None:
        super().__init__(message)
        self.seq = seq


class JournalBusy(JournalError):
    """Another writer holds the journal; `pid` is 0 when it did not say."""

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


class NotAJournal(JournalError):
    """The file is something else, and was not touched."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event to be stored."""

    stream: str
    """Whose event it is, such as `runner/mlx`; no control characters."""
    version: int
    """1 for the first event of its stream; the store refuses a version that is there or leaves a gap."""
    type: str
    schema: int
    cause: str
    data: str
    """JSON text on one line, without spaces around it."""
    at: float
    """Wall clock, seconds."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One stored event. Fields stand in the order of the columns, since replay makes them by the million."""

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

        What was appended before the call is included; what is appended meanwhile may be.
        Raises JournalDamaged, after the records before the damage.
        """
        ...

    def close(self) -> None:
        """Finish what was accepted and let go of the files. Idempotent; what comes later is NotWritten."""


class Picking(Protocol):
    """Finds stored events by what they are, each checked as `Journal.read` checks them."""

    def pick(self, numbers: Sequence[int]) -> list[Record]:
        """The events with these numbers, in order. Raises JournalDamaged for one that is not there."""
        ...

    def caused_by(self, cause: str) -> list[int]:
        """The numbers of the events with this cause, in order."""
        ...

    def number_of(self, stream: str, version: int) -> int | None:
        """The number of the event with this id; None if there is none."""
        ...
