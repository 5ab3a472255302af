"""The database: its tables, how one is made, and how one is recognised."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from greenroom.actors.journal.chain import Row
from greenroom.actors.journal.files import Clock, JournalFiles
from greenroom.actors.journal.fsync import sync_folder
from greenroom.actors.journal.port import JournalDamaged, JournalError, JournalTooNew, NotAJournal

APPLICATION_ID = 0x47524A4C
"""`GRJL` in the file's header: how `file` and we tell it from any other SQLite database."""
FORMAT = 1
"""Log format, kept as SQLite's `user_version`. Raised when an older program could not read a newer file."""

SQLITE_VERSION = sqlite3.sqlite_version
"""For bug reports."""

COLUMNS = "seq, at, stream, version, type, schema, cause, data, crc"
INSERT = f"INSERT INTO events({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608

# `meta` is one row without an index: through a damaged one, the writer would change the wrong row.
_TABLES = f"""
CREATE TABLE meta(
  one INTEGER PRIMARY KEY CHECK (one = 1),
  id TEXT NOT NULL,
  created REAL NOT NULL,
  in_use TEXT NOT NULL
) STRICT;
CREATE TABLE events(
  seq INTEGER PRIMARY KEY,
  at REAL NOT NULL,
  stream TEXT NOT NULL,
  version INTEGER NOT NULL,
  type TEXT NOT NULL,
  schema INTEGER NOT NULL,
  cause TEXT NOT NULL,
  data TEXT NOT NULL,
  crc INTEGER NOT NULL,
  UNIQUE(stream, version)
) STRICT;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
"""
_INDEX = """
SELECT stream, count(*), max(version), sum(version), sum(seq)
FROM events INDEXED BY sqlite_autoindex_events_1 GROUP BY stream
"""
_OLDEST_SQLITE = (3, 37, 0)


class Meta(msgspec.Struct, frozen=True, array_like=True):
    id: str
    """Made with the journal; tells it from every other."""
    created: float
    in_use: str
    """Who has it open for writing (`pid since`); empty once it was closed in order."""


def create(files: JournalFiles, clock: Clock) -> None:
    """Make an empty journal; it has its name only once it is whole and durable."""
    with new_database(files, journal_id=new_id(), created=clock(), rows=()):
        pass


def new_id() -> str:
    return os.urandom(16).hex()


@contextmanager
def new_database(
    files: JournalFiles, *, journal_id: str, created: float, rows: Iterable[Row]
) -> Iterator[None]:
    """Make a journal of these rows beside `files`; it takes its place when the block ends well."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        oldest = ".".join(map(str, _OLDEST_SQLITE))
        raise JournalError(
            f"the journal needs SQLite {oldest} or newer; this Python has {sqlite3.sqlite_version}"
        )
    discard_draft(files)
    draft = files.draft
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        _fill(draft, journal_id, created, rows)
        yield
        os.rename(draft, files.db)
        sync_folder(files.folder)
    except BaseException:
        discard_draft(files)
        raise


def _fill(path: os.PathLike[str], journal_id: str, created: float, rows: Iterable[Row]) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(f"BEGIN; {_TABLES}")
        connection.executemany(INSERT, rows)
        connection.execute("INSERT INTO meta VALUES (1, ?, ?, '')", (journal_id, created))
        connection.execute("COMMIT")
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise JournalError(
                f"the file system of {os.fspath(path)} cannot hold a journal (SQLite's WAL mode is refused); "
                "choose a local disk with GREENROOM_HOME"
            )
    finally:
        connection.close()


def discard_draft(files: JournalFiles) -> None:
    """Remove what a creation that was cut short has left."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        files.draft.with_name(files.draft.name + suffix).unlink(missing_ok=True)


def triggers(connection: sqlite3.Connection) -> list[str]:
    """Names of triggers; we make none, and a foreign one can change what we store."""
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY name")
    return [str(name) for (name,) in found.fetchall()]


def has_triggers(name: str, found: Sequence[str]) -> str:
    return (
        f"{name} has triggers that Greenroom did not make ({', '.join(found)}): they can change what is "
        "stored. No event is lost; remove them with `DROP TRIGGER` in an SQLite shell"
    )


def index_is_whole(connection: sqlite3.Connection, heads: Mapping[str, int]) -> bool:
    """Whether the index has every row that is there: `heads` are the last versions, known from the rows.

    The rows have checksums and the index has none. It is read alone, and quickly; its sums give away what a
    flipped bit leaves.
    """
    try:
        found = connection.execute(_INDEX).fetchall()
    except sqlite3.Error as error:
        if is_damage(error):
            return False
        raise
    rows = sum(heads.values())
    return (
        {stream: last for stream, _, last, _, _ in found} == heads
        and all(count == last and total == last * (last + 1) // 2 for _, count, last, total, _ in found)
        and sum(seqs for *_, seqs in found) == rows * (rows + 1) // 2
    )


def read_meta(connection: sqlite3.Connection, name: str) -> Meta:
    """Recognise the database; raises NotAJournal, JournalTooNew or JournalDamaged."""
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise NotAJournal(
                f"{name} is an SQLite database, but not a journal of Greenroom; it was not touched"
            )
        if version > FORMAT:
            raise JournalTooNew(
                f"{name} was written by a newer Greenroom (log format {version}, this version "
                f"reads up to {FORMAT}); install that version again, or move {name}* aside to start "
                "a new journal"
            )
        if version < 1:
            raise JournalDamaged(f"{name} is damaged: its log format cannot be {version}", 1)
        (row,) = connection.execute("SELECT id, created, in_use FROM meta").fetchall()
        return msgspec.convert(row, Meta)
    except sqlite3.Error as error:
        if _code(error) == sqlite3.SQLITE_NOTADB:
            raise NotAJournal(f"{name} is not an SQLite database; it was not touched") from error
        raise unreadable(error, name, 1) from error
    except ValueError as error:
        raise JournalDamaged(f"{name} is damaged: its header cannot be read", 1) from error


def unreadable(error: sqlite3.Error, name: str, seq: int) -> JournalError:
    """What an error of SQLite means to who was reading event `seq`: damage, or circumstances."""
    if not is_damage(error):
        return JournalError(f"{name} cannot be read: {error}")
    return JournalDamaged(f"{name} is damaged: event {seq} cannot be read ({error})", seq)


def is_damage(error: sqlite3.Error) -> bool:
    """False when trying elsewhere, or later, might work."""
    return _code(error) not in _CIRCUMSTANCES


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 when Python's own module raised."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


_CIRCUMSTANCES = frozenset(
    (
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    )
)
