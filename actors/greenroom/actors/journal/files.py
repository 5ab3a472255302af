"""The files of a journal, and what the operating system says about them.

```
journal.db           the events
journal.db-wal       what is committed and not yet in journal.db: SQLite's; one is nothing without the other
journal.db-shm       SQLite's index of it; made again when it is missing
journal.db-lock      held by the writer, names its pid
journal.db-tail      how far the journal goes (see `chain`)
journal.db-reserve   space kept back for a full disk (see `Reserve`)
```
"""

from __future__ import annotations

import errno
import os
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

Clock = Callable[[], float]
"""Wall clock, seconds since the epoch."""


class JournalFiles:
    def __init__(self, path: str | os.PathLike[str]) -> None:
        # SQLite, too, follows links to the database.
        self.db = Path(path).resolve()
        self.folder = self.db.parent
        self.wal = self._beside("-wal")
        self.shm = self._beside("-shm")
        # Never removed, since that would let two writers hold one.
        self.lock = self._beside("-lock")
        self.tail = self._beside("-tail")
        self.reserve = self._beside("-reserve")
        # Written and removed at once, to find out whether anything can be.
        self.probe = self._beside("-probe")
        # A journal that is being made, until it is whole.
        self.draft = self._beside("-new")

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

    def put_aside(self) -> list[Path]:
        """The journals that `aside` named, the oldest first."""
        stem, suffix = re.escape(self.db.stem), re.escape(self.db.suffix)
        stamped = re.compile(rf"{stem}\.\d{{8}}T\d{{6}}Z(-\d+)?{suffix}")
        try:
            found = [one for one in self.folder.iterdir() if stamped.fullmatch(one.name)]
        except OSError:
            return []
        return sorted(found)

    def _beside(self, suffix: str) -> Path:
        return self.db.with_name(self.db.name + suffix)


def size(path: Path) -> int | None:
    """Bytes in the file; None when there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""What the system says when there is no room, in one way or another."""


def why_no_write(files: JournalFiles, length: int = 65_536) -> OSError | None:
    """Why nothing can be written beside the database, found out by trying; None when something can.

    SQLite says only that a write has failed, whether the disk is broken, read-only or full.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    largest = max(size(files.db) or 0, size(files.wal) or 0)
    if limit != resource.RLIM_INFINITY and largest + length > limit:
        return OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    try:
        descriptor = os.open(files.probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            left = memoryview(os.urandom(length))
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)
            files.probe.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


class Reserve:
    """A file of nothing, given up when space is needed and laid in again when there is some.

    The space goes back to the disk, where another program may take it first; urgent batches are small and are
    appended at once.
    """

    def __init__(self, path: Path, wanted: int) -> None:
        self._path = path
        self._wanted = wanted

    @property
    def is_whole(self) -> bool:
        return (size(self._path) or 0) >= self._wanted

    def lay_in(self) -> None:
        """Make the reserve whole; OSError when there is no space for it, and then takes none."""
        if self.is_whole:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            _allocate(descriptor, self._wanted)
        except OSError:
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def give_up(self) -> None:
        self._path.unlink(missing_ok=True)


def _allocate(descriptor: int, length: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, length)
        except OSError as error:
            # Some C libraries do not make up for a file system that cannot (ZFS, NFS, 9p).
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        else:
            return
    # Random bytes, since a file system that compresses would store zeros in no space at all.
    remaining = memoryview(os.urandom(length))
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]
