"""What the system refuses an installation, as a failure."""

from __future__ import annotations

import errno
from typing import Literal

import msgspec

from greenroom.runner import errors
from greenroom.runner.errors import JobFailed

_KNOWN: dict[int, tuple[str, str] | tuple[str, str, str]] = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT),
        ("no_space", "Free some space, then install again.", "The disk is full."),
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM),
        ("no_permission", "Make sure you can write there, or set GREENROOM_HOME to another folder."),
    ),
    errno.EROFS: (
        "read_only",
        "Make it writable, or set GREENROOM_HOME to a folder that is.",
        "The data directory cannot be written to.",
    ),
    **dict.fromkeys(
        (
            *(errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV),
            *(errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT),
        ),
        ("io_error", "Check the system log, and whether the disk is still mounted."),
    ),
}
_OTHERWISE = ("os_error", "`greenroom why` with the backend's name shows more.")


def machine_failed(
    kind: Literal["transient", "permanent"], code: str, message: str, advice: str, detail: str = ""
) -> JobFailed:
    """A failure that is blamed on the machine."""
    make = JobFailed.transient if kind == "transient" else JobFailed.permanent
    failed = make(code, message, advice=advice, detail=detail)
    return JobFailed(msgspec.structs.replace(failed.failure, blame="machine"))


def os_failure(error: OSError, what: str) -> JobFailed:
    """The failure an operating system error means, blamed on the machine; `what` begins the sentence."""
    failed = errors.os_failure(error, what, str(error.filename or ""), _KNOWN, _OTHERWISE)
    return JobFailed(msgspec.structs.replace(failed.failure, blame="machine"))
