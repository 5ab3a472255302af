"""Copes with standard streams that are closed, full, or in another encoding."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def prepare_streams() -> None:
    """Make all three usable: text that cannot be encoded or decoded is shown with a mark, and is no error."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened, such as the journal, would be taken for one of the three.
            os.open(os.devnull, mode)
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    if sys.stdout is None:
        sys.stdout = io.StringIO()
    if sys.stderr is None:
        sys.stderr = io.StringIO()
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, io.UnsupportedOperation):
                stream.reconfigure(errors=errors)


def is_about_output(error: OSError) -> bool:
    """Whether an error may come from writing to standard output, which has no file name."""
    return error.filename is None and error.errno in _CANNOT_WRITE


def drop_output() -> None:
    """Discard what is still to be written: its reader is gone, and Python would complain at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def readable(text: str) -> str:
    """Text from the command line; bytes in it that are no text are shown as such."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
