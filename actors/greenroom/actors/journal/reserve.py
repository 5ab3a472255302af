"""Space kept back, so that a full disk cannot keep the journal from recording what must be recorded."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from greenroom.actors.journal.files import size


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
