"""Writing files so that a crash loses nothing: forcing bytes to the medium itself."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

_CANNOT = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS})
"""What file systems answer that have no such thing, as network drives."""


def force(descriptor: int) -> None:
    """Return once the medium has a file's bytes, or a folder's names.

    On macOS `fsync` leaves them in the drive's own cache; `F_FULLFSYNC` empties that.

    Raises:
        OSError: They cannot be written.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
        except OSError as problem:
            if problem.errno not in _CANNOT:
                raise
        else:
            return
    os.fsync(descriptor)


TEMPORARY = ".tmp-"
"""Prefix of files that only a crash leaves behind."""


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file's content atomically; it is on disk when this returns.

    Raises:
        OSError: Nothing has changed.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.urandom(6).hex()}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            force(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        force(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk: a rename is durable only after this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        force(descriptor)
    finally:
        os.close(descriptor)
