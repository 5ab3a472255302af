"""The files of saved conversations: checksums, moving in, lending out."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from pathlib import Path

import xxhash

from greenroom.actors.journal.fsync import TEMPORARY

_CHUNK = 2**20
_NO_LINKS = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}
)
"""What file systems answer that cannot give this file a second name."""


Identity = tuple[int, int, int, int]


def identity(path: Path) -> Identity:
    """Changes when a file is replaced or written to; the same for all its names. Raises OSError."""
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def checksum(path: Path) -> tuple[int, str]:
    """Size and XXH3 of a regular file; about as fast as it can be read.

    Raises:
        OSError: It cannot be read, is a link, or no file.
    """
    with os.fdopen(_opened(path), "rb", buffering=0) as file:
        digest, buffer, size = xxhash.xxh3_128(), memoryview(bytearray(_CHUNK)), 0
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return size, digest.hexdigest()


def make_private(folder: Path) -> None:
    """Make a folder its owner's alone. Raises OSError, also where it belongs to another user."""
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, f"it belongs to user {found.st_uid}; remove it, or change its owner")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)


def move(source: Path, target: Path) -> None:
    """Move a file, private from then on; copied where it lies on another file system.

    Raises:
        OSError: It could not be moved.
    """
    descriptor = _opened(source)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target)
        source.unlink()


def give(source: Path, into: Path) -> None:
    """A second name for a file, else a copy of it; whatever had that name is replaced.

    Raises:
        OSError: Neither was possible; there is nothing of that name.
    """
    into.unlink(missing_ok=True)
    try:
        os.link(source, into, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _copy(source, into)


def write(path: Path, data: bytes) -> None:
    """Replace a file's content atomically. It is not forced to the disk: losing it costs one read."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, most: int) -> bytes:
    """A small regular file.

    Raises:
        OSError: It cannot be read, is a link, no file, or larger.
    """
    with os.fdopen(_opened(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read(most)


def _opened(path: Path) -> int:
    """A descriptor of a regular file, never of what a link leads to. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def _copy(source: Path, target: Path) -> None:
    try:
        with (
            source.open("rb") as original,
            os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy,
        ):
            shutil.copyfileobj(original, copy, _CHUNK)
    except OSError:
        target.unlink(missing_ok=True)
        raise
