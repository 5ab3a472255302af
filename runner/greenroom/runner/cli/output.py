"""What commands write: streams made usable, text filtered for terminals, tables."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import click

from greenroom.actors.characters import visible

# Of a private area, so that no text has them by chance; three, so that none has them by trying.
_MARK = "".join(chr(0xF0000 + secrets.randbelow(0xFFFE)) for _ in range(3))
_OWN = re.compile(re.escape(_MARK) + r"(\[[0-9;]*[A-Za-z])")


def own(codes: str) -> str:
    """Sequences of our own, such as for a cleared screen: they pass to a terminal, and vanish elsewhere."""
    return codes.replace("\x1b", _MARK)


def style(text: str, **how: Any) -> str:
    """Like `click.style`, for text from elsewhere."""
    begin, end = click.style("\0", **how).split("\0")
    return f"{own(begin)}{text}{own(end)}"


class Filtered:
    """A text stream before another; whatever is not about text is the other's."""

    def __init__(self, stream: TextIO) -> None:
        self.unfiltered = stream
        self._carriage = ""

    @property
    def encoding(self) -> str:
        """Whatever is written here can be: see `write`."""
        return "utf-8"

    def write(self, text: str) -> int:
        """Write what may be seen; what the stream's encoding does not have is written as in JSON."""
        shown, self._carriage = self._carriage + text, ""
        if shown.endswith("\r"):
            # Perhaps the first half of a line's end.
            shown, self._carriage = shown[:-1], "\r"
        parts = _OWN.split(visible(shown.replace("\r\n", "\n"), lines=True))
        if len(parts) > 1:
            escape = "\x1b" if self.unfiltered.isatty() else ""
            parts[1::2] = [f"{escape}{one}" if escape else "" for one in parts[1::2]]
        whole = "".join(parts)
        encoding = getattr(self.unfiltered, "encoding", None) or "utf-8"
        self.unfiltered.write(whole.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unfiltered, name)


@contextlib.contextmanager
def filtered() -> Iterator[None]:
    """Standard output and standard error go through the filter meanwhile."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Filtered(out), Filtered(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def unfiltered(stream: TextIO) -> TextIO:
    """The stream behind the filter, for drawing; text drawn on it must have gone through `visible`."""
    return stream.unfiltered if isinstance(stream, Filtered) else stream


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


_GAP = "  "
_NARROWEST = 24
"""Characters the last column is given before columns go for its sake."""


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    spare: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """The table as text, without the last line's end.

    Args:
        spare: Headings of columns that are left out where the width is too small, the first one first.
        width: Characters of a line, for which the last column is broken too; None for any number.
    """
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    shown = list(range(len(headings)))
    if width is not None:
        for heading in spare:
            if _needed(widths, shown) <= width:
                break
            shown.remove(headings.index(heading))
    text: list[str] = []
    for line in lines:
        *cells, last = ((line[column], widths[column]) for column in shown)
        begin = "".join(cell.ljust(size) + _GAP for cell, size in cells)
        text += [row.rstrip() for row in _broken(begin, last[0], width)]
    return "\n".join(text)


def terminal_width() -> int | None:
    """Of the terminal that standard output is; None for a pipe or a file, which take lines of any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _needed(widths: Sequence[int], shown: Sequence[int]) -> int:
    *others, last = (widths[column] for column in shown)
    return sum(size + len(_GAP) for size in others) + min(last, _NARROWEST)


def _broken(begin: str, last: str, width: int | None) -> list[str]:
    """One line of the table, or several when its last cell is too long for one."""
    if width is None or len(begin) + len(last) <= width or width - len(begin) < _NARROWEST:
        return [begin + last]
    from textwrap import wrap

    first, *rest = wrap(last, width - len(begin), break_long_words=False, break_on_hyphens=False)
    return [begin + first, *(" " * len(begin) + more for more in rest)]


def announce(text: str) -> None:
    """Say something that is not part of the answer."""
    print(text, file=sys.stderr, flush=True)
