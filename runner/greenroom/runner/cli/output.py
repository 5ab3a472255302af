"""What commands write: streams made usable, text filtered for terminals, tables."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import click

from greenroom.actors.characters import visible

# Of a private area, so that no text has them by chance; three, so that none has them by trying.
_MARK = "".join(chr(0xF0000 + int.from_bytes(os.urandom(2)) % 0xFFFE) for _ in range(3))
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
_NARROWEST_CELL = 12
"""Characters that every column keeps."""
_LEAST = 8
"""Characters below which the last column is left to the terminal."""


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
        width: Characters of a line, for which long cells are broken or shortened too; None for any number.
    """
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    shown = list(range(len(headings)))
    if width is not None:
        for heading in spare:
            if _needed(widths, shown) <= width:
                break
            shown.remove(headings.index(heading))
        _narrow(widths, shown, width)
    text: list[str] = []
    for line in lines:
        *cells, last = shown
        parts = [_broken(line[column], widths[column]) for column in cells]
        begin = sum(widths[column] + len(_GAP) for column in cells)
        room = width - begin if width is not None and width - begin >= _LEAST else None
        parts.append([line[last]] if room is None else _broken(line[last], room))
        for number in range(max(map(len, parts))):
            words = [part[number] if number < len(part) else "" for part in parts]
            sized = zip(words, (widths[column] for column in shown), strict=True)
            text.append(_GAP.join(word.ljust(size) for word, size in sized).rstrip())
    return "\n".join(text)


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Of the terminal that a stream is (standard output); None for a pipe or a file: lines of any length."""
    shown_in = sys.stdout if stream is None else stream
    return shutil.get_terminal_size().columns if shown_in.isatty() else None


def _needed(widths: Sequence[int], shown: Sequence[int]) -> int:
    *others, last = (widths[column] for column in shown)
    return sum(size + len(_GAP) for size in others) + min(last, _NARROWEST)


def _narrow(widths: list[int], shown: Sequence[int], width: int) -> None:
    """Take from the widest columns what the line is too long by, as long as they stay readable."""
    while (excess := _needed(widths, shown) - width) > 0:
        *others, _ = shown
        widest = max(others, key=lambda column: widths[column], default=None)
        if widest is None or widths[widest] <= _NARROWEST_CELL:
            return
        widths[widest] = max(_NARROWEST_CELL, widths[widest] - excess)


def _broken(cell: str, size: int) -> list[str]:
    """A cell in lines of so many characters: sentences are broken between words, a name loses its middle."""
    if len(cell) <= size:
        return [cell]
    from textwrap import wrap

    lines = wrap(cell, size, break_long_words=False, break_on_hyphens=False)
    return [shortened(line, size) for line in lines]


def shortened(word: str, size: int) -> str:
    """A name without its middle, if it is longer than that."""
    if len(word) <= size:
        return word
    end = (size - 1) // 2
    return f"{word[: size - 1 - end]}…{word[len(word) - end :]}"


def wrapped(text: str, width: int | None, indent: int = 0) -> str:
    """Text whose lines are broken between words; what goes on is indented by so much more than its line.

    A word that is too long for a line, such as a path, stays whole: it is there to be copied.
    """
    if width is None:
        return text
    return "\n".join(part for line in text.split("\n") for part in _folded(line, width, indent))


def _folded(line: str, width: int, indent: int) -> Iterator[str]:
    if _length(line) <= width:
        yield line
        return
    margin = " " * min(len(line) - len(line.lstrip(" ")) + indent, width // 2)
    current = ""
    for word in re.findall(r"\s*\S+", line):
        fits_below = len(margin) + _length(word.lstrip()) <= width
        if current.strip() and fits_below and _length(current) + _length(word) > width:
            yield current
            current = margin + word.lstrip()
        else:
            current += word
    yield current


def _length(text: str) -> int:
    """Without sequences of our own, which take no room."""
    return len(_OWN.sub("", text))


def say(text: str, indent: int = 2) -> None:
    """Print sentences to standard output, broken between words on a terminal."""
    print(wrapped(text, terminal_width(), indent))


def announce(text: str) -> None:
    """Say something that is not part of the answer."""
    print(wrapped(text, terminal_width(sys.stderr)), file=sys.stderr, flush=True)
