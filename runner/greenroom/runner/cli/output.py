"""The filter through which everything goes that commands print to the terminal.

Names and metadata of models, answers, and texts of engines and registries may contain control sequences. They
are printed escaped (`\\u001b[2J`), in pipes too, which may end at a terminal. Our own colours pass, because
`own` marks them with a random word.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import sys
from collections.abc import Iterator
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
    """Like `click.style`, of a text that may be anybody's."""
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
        """Write each."""
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
