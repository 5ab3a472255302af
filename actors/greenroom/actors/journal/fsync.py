"""Forcing bytes to the medium itself."""

from __future__ import annotations

import errno
import fcntl
import os

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
