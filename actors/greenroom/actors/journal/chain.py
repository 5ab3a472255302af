"""The chain: what makes a row the one that was written, and the next row the only one that may follow.

A row's CRC is the CRC-32 (zlib's) of the MessagePack array of its eight columns, in MessagePack's
shortest form with 64-bit floats, started from the CRC of the row before (0 for the first). So one
number at the end of a journal stands for all of its history, and a changed, missing or foreign row is
found at its place.

The tail is a small file beside the journal that says how far it goes. SQLite reads a write-ahead log up to
the first frame that is not whole and takes that for its end. It cannot tell a commit that never was from
one that has rotted, was cut off, or whose log was not copied along: it drops the rest without a word. So
after each commit, and before any caller learns of it, the writer notes the last row's number and CRC here.
The note is not synced, which would double the cost of a commit: it outlives the process, and after a loss
of power it may be older than the journal but never newer. A journal that ends before its tail has lost
events.
"""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from greenroom.actors.journal.fsync import force
from greenroom.actors.journal.port import Entry, JournalDamaged, NotWritten, Record

Row = tuple[int, float, str, int, str, int, str, str, int]
"""The columns seq, at, stream, version, type, schema, cause, data, crc."""

_encode = msgspec.msgpack.Encoder().encode
_scan_json = msgspec.json.Decoder(msgspec.Raw).decode
_crc32 = zlib.crc32
_MAX_INT = 2**63 - 1
_NAME_LIMIT = 512


def checksum(row: Sequence[object], previous: int) -> int:
    """CRC of a row's first eight columns, following the row whose CRC is `previous`."""
    return _crc32(_encode(row[:8]), previous)


def intact(rows: Sequence[Row], seq: int, crc: int) -> int:
    """How many of the rows follow without a break on the row `seq` whose CRC is `crc`."""
    count = 0
    for row in rows:
        seq += 1
        crc = _crc32(_encode(row[:8]), crc)
        if crc != row[8] or seq != row[0]:
            return count
        count += 1
    return count


def records(rows: Iterable[Row]) -> list[Record]:
    return [Record(a, b, c, d, e, f, g, h) for a, b, c, d, e, f, g, h, _ in rows]


def broken_link(row: Row | None, seq: int) -> JournalDamaged:
    """The error for the row that should have been `seq`: `row` is what stands there."""
    if row is None or row[0] != seq:
        return JournalDamaged(f"the journal is damaged: event {seq} is missing", seq)
    return JournalDamaged(f"the journal is damaged: event {seq} is not what was written", seq)


class Chain:
    """Where a journal ends: its last row, and the last version of each stream."""

    def __init__(self) -> None:
        self.seq = 0
        self.crc = 0
        self.heads: dict[str, int] = {}

    def follow(self, rows: Sequence[Row]) -> None:
        """Take in the next stored rows, already found `intact`; JournalDamaged where a version is wrong."""
        heads = self.heads
        for row in rows:
            stream, version = row[2], row[3]
            if version != heads.get(stream, 0) + 1:
                # Well checksummed and yet out of order: written by something that is not our writer.
                raise JournalDamaged(
                    f"the journal is damaged: event {row[0]} is number {version} of stream {stream!r}, "
                    f"which had {heads.get(stream, 0)}",
                    row[0],
                )
            heads[stream] = version
            self.seq, self.crc = row[0], row[8]


class Draft:
    """Rows about to be committed at the end of a chain; the chain learns of them only by `accept`."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._heads: dict[str, int] = {}
        self.seq = chain.seq
        self.crc = chain.crc
        self.rows: list[Row] = []

    def add(self, batch: Sequence[Entry]) -> list[Row]:
        """Put a checked batch at the end; NotWritten, and no change, if its versions do not follow."""
        heads: dict[str, int] = {}
        for entry in batch:
            stream = entry.stream
            head = heads.get(stream) or self._heads.get(stream) or self._chain.heads.get(stream, 0)
            if entry.version != head + 1:
                raise NotWritten(
                    f"event {stream}/{entry.version} does not follow: the stream's last version is {head}"
                )
            heads[stream] = entry.version
        first = len(self.rows)
        seq, crc = self.seq, self.crc
        for e in batch:
            seq += 1
            columns = (seq, float(e.at), e.stream, e.version, e.type, e.schema, e.cause, e.data)
            crc = _crc32(_encode(columns), crc)
            self.rows.append((*columns, crc))
        self.seq, self.crc = seq, crc
        self._heads.update(heads)
        return self.rows[first:]

    def accept(self) -> None:
        """The rows are stored: the chain ends after them."""
        self._chain.heads.update(self._heads)
        self._chain.seq, self._chain.crc = self.seq, self.crc


def checked(batch: Iterable[Entry]) -> tuple[Entry, ...]:
    """The batch, if each of its entries can be stored and read back exactly; NotWritten otherwise."""
    entries = tuple(batch)
    for entry in entries:
        for name, is_good, wanted in _RULES:
            if not is_good(getattr(entry, name)):
                raise NotWritten(
                    f"event {entry.stream!r}/{entry.version!r} cannot be stored: {name} must be {wanted}"
                )
    return entries


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _NAME_LIMIT and (not value or value.isprintable())


def _is_json_line(value: object) -> bool:
    # Exports hold it as it is, one event a line: so what stands around it must not get lost.
    if not isinstance(value, str) or "\n" in value or "\r" in value or value != value.strip():
        return False
    try:
        _scan_json(value)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return False
    return True


# `isprintable` also refuses lone surrogates, which no database takes.
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("stream", lambda name: bool(name) and _is_text(name), f"1 to {_NAME_LIMIT} printable characters"),
    ("version", lambda count: type(count) is int and 0 < count <= _MAX_INT, "a whole number from 1"),
    ("type", lambda name: bool(name) and _is_text(name), f"1 to {_NAME_LIMIT} printable characters"),
    ("schema", lambda schema: type(schema) is int and 0 <= schema <= _MAX_INT, "a whole number from 0"),
    ("cause", _is_text, f"at most {_NAME_LIMIT} printable characters"),
    ("data", _is_json_line, "JSON text on one line, without spaces around it"),
    ("at", lambda at: isinstance(at, int | float) and math.isfinite(at), "a finite number of seconds"),
)


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
