"""The record of requests: an SQLite file in the data directory, limited in days, rows and bytes.

Nothing else depends on the file, so it may be deleted. A file of an earlier version gets the columns that it
lacks; one that is damaged or was written by a later version is replaced by an empty one.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from greenroom.runner.record.bodies import Kept
from greenroom.runner.record.row import Row

if TYPE_CHECKING:
    import logging


FILE = "requests.db"
"""The file's name in the data directory."""
BODIES = 64_000_000
"""Maximum bytes of all bodies together; the oldest are deleted first."""
LISTED = 1_000
"""Maximum rows of a list."""
_VERSION = 2
_BUSY = 5.0
"""Seconds to wait for a lock that another connection holds."""
_DAMAGED = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR}
)
"""`SQLITE_ERROR` stands for a table or column that is missing."""
_ESCAPES = str.maketrans({"%": "%25", "?": "%3f", "#": "%23"})
_COLUMNS = Row.__struct_fields__
_TYPES = {
    **dict.fromkeys(_COLUMNS, "TEXT NOT NULL"),
    **dict.fromkeys(("at", "queued", "installing", "loading", "seconds"), "REAL NOT NULL"),
    **dict.fromkeys(("seconds_saved", "restored_from"), "REAL NOT NULL"),
    **dict.fromkeys(("status", "estimated", "recorded", "tokens_restored"), "INTEGER NOT NULL"),
    **dict.fromkeys(("first_token", "tokens_per_second"), "REAL"),
    **dict.fromkeys(("tokens_in", "tokens_out", "tokens_cached"), "INTEGER"),
}
_SCHEMA = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE requests (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  {", ".join(f"{name} {_TYPES[name]}{' UNIQUE' if name == 'id' else ''}" for name in _COLUMNS)}
) STRICT;
CREATE INDEX by_time ON requests (at);
CREATE TABLE bodies (
  id TEXT PRIMARY KEY REFERENCES requests (id) ON DELETE CASCADE, at REAL NOT NULL, size INTEGER NOT NULL,
  cut INTEGER NOT NULL, request TEXT NOT NULL, response TEXT NOT NULL
) STRICT;
PRAGMA user_version = {_VERSION};
COMMIT;
"""
# The names are those of `Row`; nothing in these statements comes from outside.
_INSERT = (
    f"INSERT OR REPLACE INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' for _ in _COLUMNS)})"  # noqa: S608
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM requests"  # noqa: S608

_LATEST = f"""
SELECT {", ".join(_COLUMNS)} FROM (
  SELECT *, row_number() OVER (PARTITION BY model_id ORDER BY at DESC, number DESC) AS age FROM requests
  WHERE model_id != '' AND family != 'management'
) WHERE age <= ? ORDER BY at
"""  # noqa: S608


_ENDINGS = """
SELECT CASE WHEN looked_up THEN 'whole' ELSE outcome END AS ending,
  CASE WHEN looked_up THEN '' ELSE code END AS why, count(*), max(at), id, sentence
FROM (
  SELECT *, family = 'management' AND outcome = 'refused'
    AND code IN ('model_not_found', 'backend_not_installed') AS looked_up
  FROM requests WHERE at BETWEEN ? AND ?
)
GROUP BY ending, why ORDER BY count(*) DESC LIMIT ?
"""
"""SQLite takes `id` and `sentence` from the row with the maximum (sqlite.org/lang_select.html#bareagg).

A request for management that finds a model or backend missing is answered by that: `run` asks so before it
fetches them.
"""
_SLOW = """
FROM requests WHERE at BETWEEN ? AND ? AND family != 'management' AND outcome != 'refused'
AND coalesce(first_token, seconds) >= ?
"""


class Endings(msgspec.Struct, frozen=True):
    """How many requests ended with one outcome and code, and the latest of them."""

    outcome: str
    code: str
    count: int
    at: float
    """When the latest arrived, in seconds since 1970."""
    id: str
    """Id of the latest."""
    sentence: str
    """Error message of the latest."""


class Bodies(NamedTuple):
    """The body of a request and of its response, as text."""

    request: str
    response: str
    cut: bool
    """Whether a body was longer than what is kept."""


class RowFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Selects rows that match every field that is set."""

    model: str = ""
    """The model's name, as requested or as displayed, or its id."""
    model_id: str = ""
    """The id that `model` resolves to, if it is known."""
    status: str = ""
    """A status such as `404`, a class such as `4xx`, or an outcome such as `left`."""
    slow: float = 0.0
    """Minimum seconds to the first token, or to the end of a response without one."""
    since: float = 0.0
    """Earliest arrival, in seconds since 1970."""

    def takes(self, row: Row) -> bool:
        """Whether a row matches: for requests that are not in the table yet."""
        return not (
            (self.model and not {self.model, self.model_id} & ({row.asked, row.model, row.model_id} - {""}))
            or (self.status and not self._has_status(row))
            or (self.slow and (row.seconds if row.first_token is None else row.first_token) < self.slow)
            or row.at < self.since
        )

    def _has_status(self, row: Row) -> bool:
        wanted = self.status
        if wanted.isdigit():
            return row.status == int(wanted)
        if wanted[1:] == "xx":
            return row.status // 100 == int(wanted[0])
        return (row.outcome or "running") == wanted

    def clause(self) -> tuple[str, list[Any]]:
        """The same as an SQL condition and its parameters."""
        parts = ["at >= ?"]
        values: list[Any] = [self.since]
        if self.model:
            names = [self.model, self.model_id or self.model]
            parts.append("(asked IN (?, ?) OR model IN (?, ?) OR model_id IN (?, ?))")
            values += names * 3
        if self.status.isdigit():
            parts.append("status = ?")
            values.append(int(self.status))
        elif self.status[1:] == "xx":
            parts.append("status / 100 = ?")
            values.append(int(self.status[0]))
        elif self.status:
            parts.append("outcome = ?")
            values.append(self.status)
        if self.slow:
            parts.append("coalesce(first_token, seconds) >= ?")
            values.append(self.slow)
        return " AND ".join(parts), values


class NotUsable(Exception):
    """The file cannot be read or written; the message says why."""


_NONE: Mapping[str, Row] = {}


class RecordTable:
    """Writes the table. Methods block, and raise NotUsable unless they say otherwise."""

    def __init__(self, path: Path, *, keep_for: float, rows: int) -> None:
        """Rows older than `keep_for` seconds are deleted, and the oldest beyond `rows`."""
        self._path = path
        self._keep_for, self._rows = keep_for, rows
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None

    def append(self, rows: Sequence[tuple[Row, Kept | None]], now: float) -> str:
        """Write rows, and delete those that are too old or too many.

        Returns a warning if the file was damaged and has been replaced by an empty one, else "".
        """
        try:
            try:
                self._append(rows, now)
            except (NotUsable, sqlite3.Error) as error:
                if not _is_damage(error):
                    raise
                self.remove()
                self._append(rows, now)
                return f"The record of requests, {self._path}, was replaced by an empty one: {error}."
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise NotUsable(str(error)) from error
        return ""

    def remove(self) -> None:
        """Delete the file and SQLite's own beside it. Raises OSError."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # What was committed is in the file or in the write-ahead log.
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _append(self, rows: Sequence[tuple[Row, Kept | None]], now: float) -> None:
        connection = self._open()
        bodies = [(row, *kept.texts(), kept.cut) for row, kept in rows if kept is not None]
        with _transaction(connection):
            connection.executemany(_INSERT, [msgspec.structs.astuple(row) for row, _ in rows])
            connection.executemany(
                "INSERT OR REPLACE INTO bodies (id, at, size, cut, request, response) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (row.id, row.at, len(said) + len(answer), cut, said, answer)
                    for row, said, answer, cut in bodies
                ],
            )
            gone = self._make_room(connection, now)
        if gone:
            # Deleted text must remain neither in free pages (`secure_delete`) nor in the write-ahead log.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("PRAGMA incremental_vacuum(1000)").fetchall()

    def _make_room(self, connection: sqlite3.Connection, now: float) -> bool:
        """Delete what exceeds the limits. True if bodies or many rows were deleted."""
        had = _number(connection, "SELECT count(*) FROM bodies")
        gone = connection.execute("DELETE FROM requests WHERE at < ?", (now - self._keep_for,)).rowcount
        gone += connection.execute(
            "DELETE FROM requests WHERE number <= (SELECT max(number) FROM requests) - ?", (self._rows,)
        ).rowcount
        while had and _number(connection, "SELECT total(size) FROM bodies") > BODIES:
            connection.execute("DELETE FROM bodies WHERE id = (SELECT id FROM bodies ORDER BY at LIMIT 1)")
        return gone > 1_000 or _number(connection, "SELECT count(*) FROM bodies") < had

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._opened != _identity(self._path):
            # The file was deleted, replaced or emptied meanwhile; rows written to the old one would be lost.
            self.close()
        if self._connection is None:
            self._path.touch(mode=0o600)
            connection = sqlite3.connect(
                self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False
            )
            try:
                version = _version_of(connection)
                if not version:
                    connection.executescript(_SCHEMA)
                elif version < _VERSION:
                    _add_columns(connection)
                for pragma in ("synchronous = NORMAL", "foreign_keys = ON", "secure_delete = ON"):
                    connection.execute(f"PRAGMA {pragma}")
            except BaseException:
                connection.close()
                raise
            self._connection, self._opened = connection, _identity(self._path)
        return self._connection


class RecordReader:
    """Reads the table, also while a daemon writes to it. A context manager; methods block.

    Raises:
        FileNotFoundError: This data directory has no record.
        NotUsable: The file cannot be read. Methods raise it too.
    """

    def __init__(self, home: Path) -> None:
        path = home / FILE
        if not path.exists():
            raise FileNotFoundError(f"There is no record of requests at {path}.")
        self._path = path
        self._connection = _reading(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def rows(self, wanted: RowFilter, last: int = LISTED) -> list[Row]:
        """The latest `last` rows that match, oldest first."""
        clause, values = wanted.clause()
        found = self._read(f"{_SELECT} WHERE {clause} ORDER BY at DESC, number DESC LIMIT ?", [*values, last])
        return [_row(one) for one in reversed(found)]

    def latest_of_models(self, each: int) -> list[Row]:
        """The latest `each` requests to each model, oldest first."""
        return [_row(one) for one in self._read(_LATEST, [each])]

    def endings(self, since: float, until: float) -> list[Endings]:
        """How the requests that arrived between two times ended, most frequent outcome first."""
        return [Endings(*one) for one in self._read(_ENDINGS, [since, until, LISTED])]

    def slowest(self, since: float, until: float, slow: float, most: int) -> tuple[list[Row], int]:
        """Requests with at least `slow` seconds to the first token: the `most` slowest, and how many."""
        values = [since, until, slow]
        count = int(self._read(f"SELECT count(*) {_SLOW}", values)[0][0])
        order = "ORDER BY coalesce(first_token, seconds) DESC LIMIT ?"
        rows = self._read(f"SELECT {', '.join(_COLUMNS)} {_SLOW} {order}", [*values, most])
        return [_row(one) for one in rows], count

    def row(self, request_id: str) -> Row | None:
        return next((_row(one) for one in self._read(f"{_SELECT} WHERE id = ?", [request_id])), None)

    def bodies(self, request_id: str) -> Bodies | None:
        """The recorded bodies of a request; None if they were not recorded or have been deleted."""
        found = self._read("SELECT request, response, cut FROM bodies WHERE id = ?", [request_id])
        return Bodies(found[0][0], found[0][1], bool(found[0][2])) if found else None

    def _read(self, query: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise NotUsable(f"The record of requests {self._path} cannot be read: {error}.") from error


@dataclass(frozen=True)
class Recorded:
    """Finds requests by id: those under way (`running`) and those in the record, if it can be read."""

    running: Mapping[str, Row]
    reader: RecordReader | None

    def __call__(self, request_id: str) -> Row | None:
        if (found := self.running.get(request_id)) is not None or self.reader is None:
            return found
        try:
            return self.reader.row(request_id)
        except NotUsable as error:
            _log().warning("%s", error)
            return None

    def latest(self) -> list[Row]:
        """The latest recorded rows, oldest first, followed by those of requests under way."""
        try:
            found = self.reader.rows(RowFilter()) if self.reader is not None else []
        except NotUsable as error:
            _log().warning("%s", error)
            found = []
        return [*found, *self.running.values()]


@contextlib.contextmanager
def recorded_in(home: Path, running: Mapping[str, Row] = _NONE) -> Iterator[Recorded]:
    """The record of a data directory, with or without a file."""
    with contextlib.ExitStack() as stack:
        try:
            reader = stack.enter_context(RecordReader(home))
        except (FileNotFoundError, NotUsable) as error:
            _log().debug("%s", error)
            yield Recorded(running, None)
            return
        yield Recorded(running, reader)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode number; None if the file is missing or empty."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino) if found.st_size else None


def _reading(path: Path) -> sqlite3.Connection:
    problem = ""
    # In a read-only folder SQLite cannot create its lock files, and reads only with `immutable`.
    for how in ("mode=ro", "mode=ro&immutable=1"):
        connection = None
        try:
            connection = sqlite3.connect(
                f"file:{str(path).translate(_ESCAPES)}?{how}",
                uri=True,
                timeout=_BUSY,
                isolation_level=None,
                check_same_thread=False,
            )
            version = _version_of(connection)
            if version < _VERSION:
                problem = "the next request converts it from an earlier version" if version else "it is empty"
                continue
        except (NotUsable, sqlite3.Error) as error:
            problem = str(error)
            if connection is not None:
                connection.close()
            continue
        return connection
    raise NotUsable(f"The record of requests {path} cannot be read: {problem}.")


def _version_of(connection: sqlite3.Connection) -> int:
    """0 for an empty file. Raises NotUsable if a later version wrote the file."""
    version = _number(connection, "PRAGMA user_version")
    if version == 0 and not _number(connection, "SELECT count(*) FROM sqlite_master"):
        return 0
    if not 0 < version <= _VERSION:
        raise NotUsable("it was written by another version of Greenroom")
    return version


def _add_columns(connection: sqlite3.Connection) -> None:
    """Make a table of an earlier version one of this: columns were only ever added."""
    known = {one[1] for one in connection.execute("PRAGMA table_info(requests)")}
    with _transaction(connection):
        for name in _COLUMNS:
            if name not in known:
                kind = _TYPES[name]
                default = (
                    "" if "NOT NULL" not in kind else "DEFAULT ''" if kind.startswith("TEXT") else "DEFAULT 0"
                )
                connection.execute(f"ALTER TABLE requests ADD COLUMN {name} {kind} {default}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, NotUsable) or code in _DAMAGED


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _row(found: Sequence[Any]) -> Row:
    return msgspec.convert(dict(zip(_COLUMNS, found, strict=True)), Row, strict=False)


def _log() -> logging.Logger:
    import logging  # commands import this module and log nothing

    return logging.getLogger(__name__)
