"""Reading a journal without ever changing it, whether or not a process is writing to it."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from greenroom.actors.journal import schema
from greenroom.actors.journal.chain import Row, Tail, broken_link, checksum, intact, read_tail, records
from greenroom.actors.journal.files import JournalFiles, size
from greenroom.actors.journal.port import JournalDamaged, JournalError, NotAJournal, Record

CHUNK = 256
"""Rows a query. Each query is a transaction of its own, so a slow reader never holds up a checkpoint; and
beyond this, rows fall out of the processor's cache before they are used."""

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

_NEXT = f"SELECT {schema.COLUMNS} FROM events WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
_NEXT_OF_STREAM = f"""
SELECT {schema.COLUMNS}, (SELECT p.crc FROM events p WHERE p.seq = e.seq - 1) FROM events e
WHERE stream = ? AND version > ? ORDER BY version LIMIT ?
"""  # noqa: S608
_PICKED = f"""
SELECT {schema.COLUMNS}, (SELECT p.crc FROM events p WHERE p.seq = e.seq - 1) FROM events e
WHERE seq IN (%s) ORDER BY seq
"""  # noqa: S608
_CAUSED = "SELECT seq FROM events WHERE cause = ? ORDER BY seq"
_NUMBER = "SELECT seq FROM events WHERE stream = ? AND version = ?"
_CRC_AT = "SELECT crc FROM events WHERE seq = ?"
_LAST = "SELECT seq FROM events ORDER BY seq DESC LIMIT 1"

# A log with a header and nothing else says nothing; a reader leaves an empty one behind.
_WAL_HEADER = 32
_MAX_INT = 2**63 - 1
_BUSY_SECONDS = 5.0
# What means something in SQLite's URIs (sqlite.org/uri.html).
_ESCAPES = str.maketrans({"%": "%25", "?": "%3f", "#": "%23"})


def read_journal(path: str | os.PathLike[str], *, after: int = 0) -> Iterator[Record]:
    """Every record of the journal at `path`, checked, as `JournalReader.read` gives them."""
    with JournalReader(path) as reader:
        yield from reader.read(after=after)


class JournalReader:
    """A journal opened for reading only: by the diagnosis commands, beside a live writer, from a copy.

    One thread at a time. Works in folders that cannot be written to.
    """

    id: str
    """Tells this journal from every other."""
    notices: tuple[str, ...]
    """Sentences for the user: what is odd and loses no event."""

    def __init__(self, path: str | os.PathLike[str], *, strict: bool = True) -> None:
        """Open it: a file, or the `journal.db` in a folder.

        A file that was copied alone while in use may lack its last events, and nothing tells whether it does:
        that is damage, or with `strict=False` a notice.

        Raises FileNotFoundError, NotAJournal, JournalTooNew, JournalDamaged or JournalError.
        """
        self._is_strict = strict
        self.files = JournalFiles(Path(path, "journal.db") if os.path.isdir(path) else path)
        self._name = str(self.files.db)
        self._copy: TemporaryDirectory[str] | None = None
        # The tail before the rows: a live writer moves it only after a commit, which we then see.
        tail = read_tail(self.files.tail)
        self._snapshot: tuple[int, ...] | None = None
        self._connection = self._connect()
        try:
            self._inode = os.stat(self.files.db).st_ino
            self._meta = schema.read_meta(self._connection, self._name)
        except BaseException:
            self.close()
            raise
        self.id = self._meta.id
        self.created = self._meta.created
        self._tail = tail if tail is not None and tail.journal == self.id else None
        # Looked at after the mark: a writer makes its log before it sets the mark, and cannot remove
        # the log while we are connected.
        self._is_lone = bool(self._meta.in_use) and (size(self.files.wal) or 0) <= _WAL_HEADER
        self.notices = self._odd_things(tail)

    def read(self, *, after: int = 0, stream: str | None = None) -> Iterator[Record]:
        """Every record with `seq > after` in order; with `stream` only those of that stream.

        Each is checked against its CRC, and the end of the journal against its tail, so what comes is
        what was written, in full, or JournalDamaged is raised after the last good record.
        """
        for rows in self.chunks(after=after):
            if stream is not None:
                rows = [row for row in rows if row[2] == stream]  # noqa: PLW2901
            yield from records(rows)

    def read_stream(self, stream: str, *, after: int = 0, head: int) -> Iterator[Record]:
        """The records of one stream by its index, which must reach version `head` at least.

        Quicker than `read` where the stream is a small part. The caller has to know the head, because a
        damaged index can leave out events without a trace.
        """
        version = 0
        while rows := self._query(_NEXT_OF_STREAM, (stream, version, CHUNK), after + 1):
            for row in rows:
                version += 1
                seq = row[0]
                previous = row[9] if seq > 1 else 0
                if row[3] != version or previous is None or checksum(row, previous) != row[8]:
                    raise JournalDamaged(
                        f"{self._name} is damaged: event {stream}/{version} is incomplete", seq
                    )
                if seq > after:
                    yield Record(*row[:8])
        if version < head:
            raise JournalDamaged(
                f"{self._name} is damaged: stream {stream} ends at {version}, but {head} were written",
                self.last_seq() + 1,
            )

    def pick(self, numbers: Sequence[int]) -> list[Record]:
        """The events with these numbers, in order, each checked against the one before it.

        Raises JournalDamaged for one that is missing or is not what was written.
        """
        found: list[Record] = []
        for start in range(0, len(numbers), CHUNK):
            wanted = sorted(numbers[start : start + CHUNK])
            rows = self._query(_PICKED % ",".join("?" * len(wanted)), tuple(wanted), wanted[0])
            by_seq = {row[0]: row for row in rows}
            for seq in wanted:
                row = by_seq.get(seq)
                previous = 0 if seq == 1 else row[9] if row is not None else None
                if row is None or previous is None or checksum(row, previous) != row[8]:
                    raise broken_link(row, seq)
                found.append(Record(*row[:8]))
        return found

    def caused_by(self, cause: str) -> list[int]:
        """The numbers of the events with this cause, in order."""
        return [row[0] for row in self._query(_CAUSED, (cause,), 1)]

    def number_of(self, stream: str, version: int) -> int | None:
        """The number of the event with this id; None if there is none."""
        rows = self._query(_NUMBER, (stream, min(version, _MAX_INT)), 1)
        return int(rows[0][0]) if rows else None

    def crc_at(self, seq: int) -> int | None:
        """The CRC that is stored with an event; None if there is no such event."""
        rows = self._query(_CRC_AT, (seq,), seq)
        return int(rows[0][0]) if rows else None

    def follow(
        self, *, after: int = 0, stop: threading.Event | None = None, interval: float = 0.1
    ) -> Iterator[Record]:
        """Every record with `seq > after`, and then each new one as it is committed, until `stop` is set.

        Looks every `interval` seconds. Raises JournalError when the journal is replaced by another.
        """
        stop = stop or threading.Event()
        seq = after
        while not stop.is_set():
            for rows in self._raw_chunks(seq):
                seq = rows[-1][0]
                yield from records(rows)
                if stop.is_set():
                    return
            stop.wait(interval)
            self._keep_up()

    def last_seq(self) -> int:
        """The last record's number; 0 when there is none."""
        rows = self._query(_LAST, (), 1)
        return int(rows[0][0]) if rows else 0

    def chunks(self, *, after: int = 0) -> Iterator[list[Row]]:
        """The rows as `read` gives records, CRC included, some at a time."""
        yield from self._raw_chunks(after)
        self._check_end(self.last_seq())

    def flaws(self) -> list[str]:
        """What is wrong with the database beside its rows: its indexes, and what is not ours; slow."""
        found = [str(row[0]) for row in self._query("PRAGMA integrity_check(20)", (), 1)]
        flaws = [] if found == ["ok"] else found
        foreign = schema.triggers(self._connection)
        return flaws + ([schema.has_triggers(self._name, foreign)] if foreign else [])

    def copy_to(self, target: Path) -> None:
        """Copy the database as it is now, with what is still in the log, to a file that is not there yet."""
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.close(descriptor)
        copy = sqlite3.connect(target, isolation_level=None)
        try:
            self._connection.backup(copy)
            # One file, whole by itself, which can be read where nothing can be written.
            copy.execute("PRAGMA journal_mode=DELETE").fetchall()
            copy.execute("UPDATE meta SET in_use = ''")
        except sqlite3.Error as error:
            raise JournalError(f"{self._name} cannot be copied to {target}: {error}") from error
        finally:
            copy.close()

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _raw_chunks(self, after: int) -> Iterator[list[Row]]:
        seq, crc = after, self._crc_at(after)
        while True:
            try:
                rows = self._query(_NEXT, (seq, CHUNK), seq + 1)
            except JournalDamaged:
                # One of these cannot be read: give those before it, then say which one it is.
                rows = self._query(_NEXT, (seq, 1), seq + 1)
            if not rows:
                if seq >= self.last_seq():
                    return
                # Either they have come since, or the way to them is broken.
                rows = self._query(_NEXT, (seq, CHUNK), seq + 1)
                if not rows:
                    raise broken_link(None, seq + 1)
            good = intact(rows, seq, crc)
            if good:
                yield rows[:good]
                seq, crc = rows[good - 1][0], rows[good - 1][8]
            if good < len(rows):
                raise broken_link(rows[good], seq + 1)

    def _crc_at(self, seq: int) -> int:
        if seq == 0:
            return 0
        rows = self._query(_CRC_AT, (seq,), seq)
        if rows:
            return int(rows[0][0])
        if seq < self.last_seq():
            raise broken_link(None, seq)
        # There is nothing after it whose CRC could depend on this.
        return 0

    def _check_end(self, last: int) -> None:
        tail = self._tail
        if tail is not None and tail.seq > last:
            raise JournalDamaged(
                f"{self._name} ends at event {last}, but {tail.seq} were written: "
                f"{tail.seq - last} are missing{self._whereabouts()}. If you restored an older copy on "
                f"purpose, remove {self.files.tail.name} and start again",
                last + 1,
            )
        if tail is not None and tail.seq and self._crc_at(tail.seq) != tail.crc:
            raise JournalDamaged(
                f"{self._name} is damaged: event {tail.seq} is not what was written", tail.seq
            )
        if self._is_lone and tail is None and self._is_strict:
            raise JournalDamaged(
                f"{self._name} was in use when it was copied, but {self.files.wal.name} was not copied: "
                f"the events after {last} may be missing. Copy both, or copy after the daemon has stopped",
                last + 1,
            )

    def _whereabouts(self) -> str:
        wal = self.files.wal.name
        return (
            f" ({wal}, which held them, is gone)" if self._is_lone else f" ({wal} is damaged or was cut off)"
        )

    def _odd_things(self, tail: Tail | None) -> tuple[str, ...]:
        said = []
        if self._is_lone and self._tail is not None:
            said.append(
                f"{self.files.wal.name} is missing although {self.files.db.name} was not closed in order."
            )
        elif self._is_lone and not self._is_strict:
            said.append(
                f"{self.files.db.name} was copied without {self.files.wal.name} while it was in use, so its "
                "latest events may be missing. Copy both, or copy after the daemon has stopped."
            )
        if tail is None and size(self.files.tail) is not None:
            said.append(f"{self.files.tail.name} cannot be read, so a missing end would go unnoticed.")
        elif tail is not None and self._tail is None:
            said.append(f"{self.files.tail.name} belongs to another journal and was not considered.")
        return tuple(said)

    def _query(self, sql: str, parameters: tuple[object, ...], seq: int) -> list[Any]:
        """Rows, or the error for someone who was about to read event `seq`."""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise schema.unreadable(error, self._name, seq) from error
        except (MemoryError, OverflowError) as error:
            # A damaged length makes SQLite ask for gigabytes.
            raise JournalDamaged(f"{self._name} is damaged: event {seq} cannot be read", seq) from error

    def _connect(self) -> sqlite3.Connection:
        db = self.files.db
        held = size(db)
        if held is None:
            raise FileNotFoundError(f"there is no journal at {self._name}")
        if held == 0:
            raise NotAJournal(f"{self._name} is empty")
        try:
            return _open(db, "mode=ro")
        except sqlite3.Error as error:
            if schema.is_damage(error):
                # It opened: the next read says what is wrong with it.
                return _open(db, "mode=ro", probe=False)
            if not os.access(db, os.R_OK):
                raise JournalError(f"{self._name} cannot be opened for reading: {error}") from error
        # The folder cannot be written to, so SQLite cannot make its index of the log there.
        self._snapshot = self._state_of_files()
        try:
            if (size(self.files.wal) or 0) <= _WAL_HEADER:
                return _open(db, "mode=ro&immutable=1", probe=False)
            # Rarely needed, and not quick to import.
            import shutil
            from tempfile import TemporaryDirectory

            self._copy = TemporaryDirectory(prefix="greenroom-journal-")
            copy = JournalFiles(Path(self._copy.name) / db.name)
            shutil.copyfile(db, copy.db)
            shutil.copyfile(self.files.wal, copy.wal)
            return _open(copy.db, "mode=ro", probe=False)
        except (OSError, sqlite3.Error) as error:
            raise JournalError(f"{self._name} cannot be opened for reading: {error}") from error

    def _state_of_files(self) -> tuple[int, ...]:
        state: list[int] = []
        for path in (self.files.db, self.files.wal):
            if path.exists():
                stat = path.stat()
                state += (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        return tuple(state)

    def _keep_up(self) -> None:
        """Between two looks of `follow`: is it still this file, and can its news be seen?"""
        try:
            same = os.stat(self.files.db).st_ino == self._inode
        except FileNotFoundError:
            same = False
        if not same:
            raise JournalError(f"{self._name} was removed or replaced by another journal")
        if self._snapshot is not None and self._snapshot != self._state_of_files():
            self.close()
            self._connection = self._connect()


def _open(path: Path, how: str, *, probe: bool = True) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{str(path).translate(_ESCAPES)}?{how}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_BUSY_SECONDS,
    )
    try:
        connection.execute("PRAGMA query_only=1")
        connection.execute("PRAGMA cell_size_check=1")
        connection.execute("PRAGMA trusted_schema=0")
        if probe:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection
