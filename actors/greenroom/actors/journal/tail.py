"""The tail: a small file beside the journal that says how far it goes.

SQLite reads a write-ahead log up to the first frame that is not whole and takes that for its end. It
cannot tell a commit that never was from one that has rotted, was cut off, or whose log was not copied
along: it drops the rest without a word. So after each commit, and before any caller learns of it, the
writer notes the last row's number and CRC here. The note is not synced, which would double the cost of
a commit: it outlives the process, and after a loss of power it may be older than the journal but never
newer. A journal that ends before its tail has lost events.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path

import msgspec

from greenroom.actors.journal.fsync import force

_LENGTH = 96
_TRIES = 4


class Tail(msgspec.Struct, frozen=True):
    journal: str
    """Id of the journal it belongs to."""
    seq: int
    crc: int

    def encode(self) -> bytes:
        """One line of fixed length, so that it is written over in place."""
        text = f"greenroom-tail 1 {self.journal} {self.seq} {self.crc}"
        return f"{text} {zlib.crc32(text.encode()):08x}".ljust(_LENGTH - 1).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Tail | None:
        """None when it is not what `encode` made."""
        text, _, check = line.rstrip().rpartition(b" ")
        words = text.decode("ascii", "replace").split(" ")
        if len(words) != 5 or words[:2] != ["greenroom-tail", "1"] or check != b"%08x" % zlib.crc32(text):
            return None
        return cls(words[2], int(words[3]), int(words[4]))


def read_tail(path: Path) -> Tail | None:
    """The tail; None when there is none or it cannot be read as one."""
    # Again, because a writer may be in the middle of writing over it.
    for _ in range(_TRIES):
        try:
            tail = Tail.decode(path.read_bytes()[:_LENGTH])
        except OSError:
            return None
        if tail is not None:
            return tail
    return None


class TailWriter:
    """Keeps the tail, open for the life of the writer."""

    def __init__(self, path: Path, tail: Tail) -> None:
        """Write and sync the first one; OSError when that does not work."""
        self._journal = tail.journal
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(self._descriptor, tail.encode(), 0)
            os.ftruncate(self._descriptor, _LENGTH)
            force(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise

    def move(self, seq: int, crc: int) -> None:
        """The journal now ends at this row.

        A failure is no harm, and no reason to refuse what is already stored: an older tail says less,
        never anything false.
        """
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, Tail(self._journal, seq, crc).encode(), 0)

    def close(self) -> None:
        os.close(self._descriptor)
