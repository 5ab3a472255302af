"""Helpers for files that may disappear at any moment."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from greenroom.runner.errors import JobFailed
from greenroom.runner.models.errors import from_os_error

LOCK_SECONDS = 30.0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the file may belong to another user if it is readable.

    Raises:
        OSError: It cannot be opened.
        JobFailed: transient, `store_busy`: another process holds it for too long.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        descriptor = os.open(path, os.O_RDONLY)
    try:
        _hold(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _hold(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise JobFailed.transient(
                    "store_busy",
                    f"Another process has locked {path} for {LOCK_SECONDS:.0f}s.",
                    advice="End it (fuser shows which it is), and try again.",
                ) from None
            time.sleep(0.01)


def place_of(folder: Path) -> tuple[int, int] | None:
    """Identity of a folder, whatever its name; None if there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_no_other(folder: Path) -> None:
    """Raise JobFailed if a folder's name is taken by something else, such as a dangling link."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise from_os_error(FileExistsError(errno.EEXIST, "no folder", str(folder)), "reading the models")


def check_writable(folder: Path) -> None:
    """Raise OSError if nothing can be written to a folder."""
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def unlink(path: Path) -> int:
    """Remove a file; returns the bytes freed, 0 if it has another name."""
    try:
        status = path.stat()
        path.unlink()
    except OSError:
        return 0
    return status.st_size if status.st_nlink == 1 else 0


def children(folder: Path) -> list[Path]:
    """A folder's entries; empty if there is none."""
    return list(folder.iterdir()) if folder.is_dir() else []


def walk(folder: Path) -> Iterator[Path]:
    for base, _, files in os.walk(folder):
        yield from (Path(base) / name for name in files)


def size_of(paths: Iterable[Path], seen: set[tuple[int, int]]) -> int:
    """Bytes of files not yet in `seen`; hard links count once."""
    total = 0
    for path in paths:
        try:
            status = path.lstat()
        except OSError:
            continue  # gone meanwhile
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            total += status.st_size
    return total
