"""What is done with a journal as a whole: verify, count, copy, hand over, put away."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from greenroom.actors.journal import schema
from greenroom.actors.journal.chain import Chain, Draft, Row, checked
from greenroom.actors.journal.files import Clock, JournalFiles, size
from greenroom.actors.journal.fsync import sync_folder
from greenroom.actors.journal.port import (
    Entry,
    JournalDamaged,
    JournalError,
    JournalTooNew,
    NotAJournal,
    NotWritten,
)
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.writer_lock import WriterLock

Target = str | os.PathLike[str]


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    events: int
    """Good events, counted from the first to the first bad one."""
    streams: int
    damaged_at: int | None = None
    """Number of the first event that is missing or not what was written."""
    problems: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    """Odd, but no event is lost by it."""

    @property
    def is_sound(self) -> bool:
        return not self.problems


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: float
    format: int
    events: int
    first_at: float
    """0 when there are no events."""
    last_at: float
    bytes: int
    """On disk, with the log."""
    streams: dict[str, int]
    """Events by stream."""
    types: dict[str, int]
    """Events by type."""


class SetAside(msgspec.Struct, frozen=True, kw_only=True):
    path: Path
    """Where the journal is now."""
    events: int
    """Good events in it."""
    kept: int
    """Events the new journal begins with; 0 when there is none yet."""
    reason: str
    """What was wrong with it; empty when nothing was."""


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    greenroom_journal: int
    id: str
    created: float
    events: int


class _Line(msgspec.Struct, frozen=True, gc=False):
    """One event of an export; `data` is the JSON itself, not a string of it."""

    seq: int
    at: float
    stream: str
    version: int
    type: str
    schema: int
    cause: str
    data: msgspec.Raw
    crc: int


def verify(path: Target) -> Verification:
    """Check every event, the order of every stream, the journal's end, and the database itself.

    Raises FileNotFoundError, NotAJournal, JournalTooNew, or JournalError when it cannot be read at all.
    """
    chain = Chain()
    try:
        reader = JournalReader(path)
    except JournalDamaged as damage:
        return Verification(events=0, streams=0, damaged_at=damage.seq, problems=(str(damage),))
    with reader:
        problems: list[str] = []
        damaged_at = None
        try:
            for rows in reader.chunks():
                chain.follow(rows)
        except JournalDamaged as damage:
            problems.append(str(damage))
            damaged_at = damage.seq
        try:
            problems += reader.flaws()
        except JournalDamaged as damage:
            problems.append(str(damage))
        return Verification(
            events=chain.seq,
            streams=len(chain.heads),
            damaged_at=damaged_at,
            problems=tuple(problems),
            notices=reader.notices,
        )


def stats(path: Target) -> Stats:
    """Count. Raises what `JournalReader` raises."""
    streams: Counter[str] = Counter()
    types: Counter[str] = Counter()
    first = last = 0.0
    with JournalReader(path) as reader:
        for rows in reader.chunks():
            streams.update([row[2] for row in rows])
            types.update([row[4] for row in rows])
            first = first or rows[0][1]
            last = rows[-1][1]
        return Stats(
            id=reader.id,
            created=reader.created,
            format=schema.FORMAT,
            events=sum(streams.values()),
            first_at=first,
            last_at=last,
            bytes=sum(size(file) or 0 for file in (reader.files.db, reader.files.wal)),
            streams=dict(streams.most_common()),
            types=dict(types.most_common()),
        )


def export(path: Target, out: IO[bytes]) -> int:
    """Write the journal as JSON lines, a line about itself first; returns how many events.

    Raises JournalDamaged after the good events; such an export is shorter than its first line says, and
    `import_` refuses it.
    """
    count = 0
    encode = msgspec.json.Encoder().encode
    with JournalReader(path) as reader:
        events = reader.last_seq()
        head = _Head(greenroom_journal=schema.FORMAT, id=reader.id, created=reader.created, events=events)
        out.write(encode(head) + b"\n")
        for rows in reader.chunks():
            # A live writer may have gone on since the first line was written.
            for row in rows[: events - count]:
                out.write(encode(_Line(*row[:7], msgspec.Raw(row[7].encode()), row[8])) + b"\n")
            count = min(events, count + len(rows))
    return count


def import_(path: Target, lines: Iterable[bytes]) -> int:
    """Make the journal at `path` from an export; returns how many events.

    There must be no journal yet, or one without events. Either the whole export is there afterwards or
    nothing has changed. Raises JournalBusy, JournalError when there are events already, NotAJournal when
    the lines are no export, JournalTooNew, or JournalDamaged when one is missing or was changed.
    """
    files = JournalFiles(path)
    lock = WriterLock(files.lock)
    try:
        if size(files.db):
            with JournalReader(files.db) as reader:
                if last := reader.last_seq():
                    raise JournalError(f"{files.db} holds {last} events; import into an empty journal")
        source = iter(lines)
        head = _read_head(source)
        with schema.new_database(
            files, journal_id=head.id, created=head.created, rows=_imported(source, head.events)
        ):
            for leftover in (files.wal, files.shm, files.tail):
                leftover.unlink(missing_ok=True)
        return head.events
    finally:
        lock.release()


def backup(path: Target, target: Target) -> int:
    """Copy a journal, also a live one, into one file that is whole by itself; returns how many events.

    Raises FileExistsError when there is such a file. The copy is checked before it gets its name.
    """
    copy = JournalFiles(target)
    if copy.db.exists():
        raise FileExistsError(f"{copy.db} already exists")
    schema.discard_draft(copy)
    try:
        with JournalReader(path) as reader:
            reader.copy_to(copy.draft)
        events = 0
        with JournalReader(copy.draft) as reader:
            for rows in reader.chunks():
                events += len(rows)
        os.rename(copy.draft, copy.db)
        sync_folder(copy.folder)
    except BaseException:
        schema.discard_draft(copy)
        raise
    return events


def set_aside(path: Target, *, keep: bool = False, clock: Clock = time.time) -> SetAside:
    """Rename a journal that no process writes to, whatever is wrong with it, so that a new one can begin.

    With `keep` the new one begins with the good events before the damage. Nothing is removed. Raises
    FileNotFoundError or JournalBusy.
    """
    files = JournalFiles(path)
    if not files.db.exists() and not files.wal.exists():
        raise FileNotFoundError(f"there is no journal at {files.db}")
    lock = WriterLock(files.lock)
    try:
        aside = files.aside(clock)
        found = _Good(files)
        if keep:
            rows = found.rows()
            with schema.new_database(files, journal_id=schema.new_id(), created=clock(), rows=rows):
                _rename(files, aside)
        else:
            for _ in found.rows():
                pass
            _rename(files, aside)
        return SetAside(
            path=aside.db, events=found.events, kept=found.events if keep else 0, reason=found.reason
        )
    finally:
        lock.release()


class _Good:
    """The good events of a journal that may be damaged, and why there are no more."""

    def __init__(self, files: JournalFiles) -> None:
        self._files = files
        self.events = 0
        self.reason = ""

    def rows(self) -> Iterator[Row]:
        chain = Chain()
        try:
            with JournalReader(self._files.db) as reader:
                for rows in reader.chunks():
                    before = chain.seq
                    try:
                        chain.follow(rows)
                    finally:
                        self.events = chain.seq
                        # Also those before the row that does not follow.
                        yield from rows[: chain.seq - before]
        except (JournalDamaged, JournalTooNew, NotAJournal, FileNotFoundError) as error:
            self.reason = str(error)


def _rename(files: JournalFiles, aside: JournalFiles) -> None:
    # The database first: a log without one is put away when the journal is next opened, while a
    # database without its log would be taken for damaged.
    for old, new in ((files.db, aside.db), (files.wal, aside.wal), (files.tail, aside.tail)):
        if old.exists():
            os.rename(old, new)
    files.shm.unlink(missing_ok=True)
    sync_folder(files.folder)


def _read_head(lines: Iterator[bytes]) -> _Head:
    try:
        head = msgspec.json.decode(next(lines, b""), type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotAJournal("this is not a journal export: its first line is not a journal's header") from error
    if head.greenroom_journal > schema.FORMAT:
        raise JournalTooNew(
            f"this export was written by a newer Greenroom (log format {head.greenroom_journal}, "
            f"this version reads up to {schema.FORMAT})"
        )
    return head


def _imported(lines: Iterator[bytes], events: int) -> Iterator[Row]:
    chain = Chain()
    decode = msgspec.json.Decoder(_Line).decode
    for text in lines:
        seq = chain.seq + 1
        try:
            line = decode(text)
            entry = Entry(
                stream=line.stream,
                version=line.version,
                type=line.type,
                schema=line.schema,
                cause=line.cause,
                data=bytes(line.data).decode(),
                at=line.at,
            )
            draft = Draft(chain)
            (row,) = draft.add(checked((entry,)))
        except (msgspec.DecodeError, UnicodeDecodeError, NotWritten) as error:
            raise JournalDamaged(
                f"the export is damaged: event {seq} cannot be read ({error})", seq
            ) from error
        if line.seq != seq or line.crc != row[8]:
            raise JournalDamaged(f"the export is damaged: event {seq} is not what was written", seq)
        draft.accept()
        yield row
    if chain.seq != events:
        raise JournalDamaged(
            f"the export is damaged: it should hold {events} events and holds {chain.seq}", chain.seq + 1
        )
