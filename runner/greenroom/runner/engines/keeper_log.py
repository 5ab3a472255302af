"""Keeps the head and tail of an engine's output, bounded."""

from __future__ import annotations

import contextlib
import os
from typing import Any

FIRST_LINES = 20
LAST_LINES = 40
LINE_LIMIT = 500
"""Characters of a line kept in memory; the log has it whole."""
HEAD_BYTES = 256 * 1024
"""Kept permanently from the start of the output (`log`)."""
TAIL_BYTES = 512 * 1024
"""Followed by a ring of two files of this size (`log.tail`, `log.tail.old`)."""


class BoundedLog:
    """The engine's output on disk, head and tail, and its first and last lines in memory."""

    def __init__(self, path: str, head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> None:
        self._path = path
        self._head_left = head
        self._tail_limit = tail
        self._tail_left = tail
        self._file: Any = open(path, "ab", buffering=0)  # noqa: SIM115 - closed in `close`
        self._partial = b""
        self.first: list[str] = []
        self.last: list[str] = []

    def write(self, data: bytes) -> None:
        """Keep the output. A full disk loses the log, never the engine: draining goes on."""
        self._keep_lines(data)
        with contextlib.suppress(OSError):
            if self._head_left:
                part, data = data[: self._head_left], data[self._head_left :]
                self._file.write(part)
                self._head_left -= len(part)
            while data:
                self._roll()
                part, data = data[: self._tail_left], data[self._tail_left :]
                self._file.write(part)
                self._tail_left -= len(part)

    def _roll(self) -> None:
        """Make room in the tail: its first file follows the head, and a full one replaces the old one."""
        tail = f"{self._path}.tail"
        if self._file.name != tail:
            self._file.close()
            self._file = open(tail, "ab", buffering=0)  # noqa: SIM115
        elif self._tail_left <= 0:
            self._file.close()
            os.replace(tail, f"{tail}.old")
            self._file = open(tail, "ab", buffering=0)  # noqa: SIM115
            self._tail_left = self._tail_limit

    def _keep_lines(self, data: bytes) -> None:
        # A carriage return redraws a progress bar: only the last state is worth keeping.
        *whole, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-4 * LINE_LIMIT :]
        for raw in whole[:FIRST_LINES] + whole[FIRST_LINES:][-LAST_LINES:]:
            self._keep_line(raw)

    def _keep_line(self, raw: bytes) -> None:
        line = raw.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace").rstrip()[:LINE_LIMIT]
        if not line:
            return
        if len(self.first) < FIRST_LINES:
            self.first.append(line)
        self.last.append(line)
        del self.last[:-LAST_LINES]

    def close(self) -> None:
        self._keep_line(self._partial)
        self._partial = b""
        self._file.close()
