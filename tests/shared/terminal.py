"""A program in a terminal of its own, as a person sees and types it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from waiting import BOUND

PASTE = "\x1b[200~{}\x1b[201~"
"""What a terminal sends when text is pasted."""
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07|[\x07\r]")


_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Has the session's terminal be this one, so that Ctrl-C reaches the program; then becomes the program."""


class Terminal:
    def __init__(
        self,
        argv: Sequence[str],
        *,
        columns: int = 80,
        env: Mapping[str, str] | None = None,
        stdout: Path | None = None,
    ) -> None:
        """Start it; its standard output may be a file instead."""
        self._raw = b""
        self._seen = 0
        self._mine, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        # They would count more than the terminal's own size; xdist sets them.
        outer = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        out = os.open(stdout, os.O_WRONLY | os.O_CREAT, 0o600) if stdout is not None else theirs
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _TAKE_TERMINAL, *argv],
                stdin=theirs,
                stdout=out,
                stderr=theirs,
                env={**outer, "TERM": "xterm", **(env or {})},
                start_new_session=True,
            )
        finally:
            os.close(theirs)
            if stdout is not None:
                os.close(out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._mine)

    @property
    def text(self) -> str:
        """All that was shown so far, without colours and movements of the cursor."""
        return _CODES.sub("", self._raw.decode("utf-8", "replace"))

    def type(self, text: str) -> None:
        os.write(self._mine, text.encode())

    def shows(self, text: str) -> str:
        """Wait until it shows a text that it has not shown before the last call; what came with it."""
        end = time.monotonic() + BOUND
        while (at := self.text.find(text, self._seen)) < 0:
            if not self._read(end):
                raise AssertionError(f"{text!r} was not shown after {self._seen}:\n{self.text}")
        begin, self._seen = self._seen, at + len(text)
        return self.text[begin : self._seen]

    def ends(self) -> int:
        """Wait until it has ended; its exit code."""
        end = time.monotonic() + BOUND
        while self._read(end):
            pass
        return self._process.wait(BOUND)

    def interrupt(self) -> float:
        """Type Ctrl-C; the moment."""
        self.type("\x03")
        return time.monotonic()

    def _read(self, end: float) -> bool:
        """Take more of what it shows; False at its end, or when the time is over."""
        left = end - time.monotonic()
        if left <= 0 or not select.select([self._mine], [], [], left)[0]:
            return False
        try:
            more = os.read(self._mine, 65_536)
        except OSError:
            return False  # Linux says that no program has the other end any more
        self._raw += more
        return bool(more)
