"""The files a journal consists of, and what the operating system must promise about them.

```
journal.db           the events
journal.db-wal       what is committed and not yet in journal.db: SQLite's; one is nothing without the other
journal.db-shm       SQLite's index of it; made anew when it is missing
journal.db-lock      held by the writer, names its pid
journal.db-tail      how far the journal goes (see `tail`)
journal.db-reserve   space kept back for a full disk (see `reserve`)
```
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

Clock = Callable[[], float]
"""Wall clock, seconds since the epoch."""


class JournalFiles(msgspec.Struct, frozen=True):
    """Paths of one journal's files."""

    db: Path

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> JournalFiles:
        """The files of the journal whose events are in `path`; SQLite, too, follows links to the database."""
        return cls(Path(path).resolve())

    @property
    def folder(self) -> Path:
        """Where they all lie."""
        return self.db.parent

    @property
    def wal(self) -> Path:
        """SQLite's write-ahead log."""
        return self._beside("-wal")

    @property
    def shm(self) -> Path:
        """SQLite's shared memory."""
        return self._beside("-shm")

    @property
    def lock(self) -> Path:
        """The writer's lock; never removed, since that would let two writers hold one."""
        return self._beside("-lock")

    @property
    def tail(self) -> Path:
        """How far the journal goes."""
        return self._beside("-tail")

    @property
    def reserve(self) -> Path:
        """Space kept back."""
        return self._beside("-reserve")

    @property
    def draft(self) -> Path:
        """A journal that is being made, until it is whole and takes its name."""
        return self._beside("-new")

    def aside(self, clock: Clock) -> JournalFiles:
        """Names for these files when they are put away: `journal.20261122T101500Z.db` and so on."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(clock()))
        number = 0
        while True:
            again = f"-{number}" if number else ""
            name = f"{self.db.stem}.{stamp}{again}{self.db.suffix}"
            files = JournalFiles(self.db.with_name(name))
            if not (files.db.exists() or files.wal.exists() or files.tail.exists()):
                return files
            number += 1

    def _beside(self, suffix: str) -> Path:
        return self.db.with_name(self.db.name + suffix)


def size(path: Path) -> int | None:
    """Bytes in the file; None when there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def sync_folder(folder: Path) -> None:
    """Make created, renamed and removed names durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
