"""The responses of OpenAI's Responses API, kept in one SQLite file so that clients can refer to them.

They are kept for 30 days, and at most so many rows and bytes; the oldest go first. A response belongs to
who made it: no one else finds it. One thread does all the work in the order in which it was asked for, so
what was kept is found by whatever is asked later. The file is made with the first response.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from greenroom.runner.threads import Thread

FILE = "responses.db"
"""In the data directory."""
KEPT = 30 * 86_400.0
"""Seconds."""
_MOST = 10_000
"""Responses."""
_MOST_BYTES = 1_000_000_000
_UNKEPT = 64
"""Responses that wait in memory for room on the disk; the oldest go first."""
_BUSY = 5.0
"""Seconds to wait for another connection, such as that of a second front door."""
_CHAIN = 1_000
"""Responses that one conversation may consist of."""

_log = logging.getLogger(__name__)
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_decode_items = msgspec.json.Decoder(list[dict[str, Any]]).decode
_encode = msgspec.json.Encoder().encode

_LATEST_WITH = (
    "SELECT items.response FROM items JOIN responses ON responses.id = items.response "
    "WHERE items.id = ? AND owner = ? ORDER BY at DESC LIMIT 1"
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, at REAL NOT NULL, previous TEXT, size INTEGER NOT NULL,
  input BLOB NOT NULL, response BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS by_age ON responses (at, size);
CREATE TABLE IF NOT EXISTS items (
  id TEXT NOT NULL, response TEXT NOT NULL REFERENCES responses ON DELETE CASCADE, PRIMARY KEY (id, response)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_response ON items (response);
CREATE TABLE IF NOT EXISTS unfinished (
  response TEXT PRIMARY KEY REFERENCES responses ON DELETE CASCADE, life TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""
_OF_EARLIER_LIVES = (
    "SELECT id, responses.response FROM responses JOIN unfinished ON unfinished.response = id WHERE life <> ?"
)
_CUT_SHORT = {
    "code": "server_error",
    "message": "Greenroom ended before this response was complete. Create it again.",
}
UNFINISHED = frozenset({"queued", "in_progress"})
"""What the status of a response is until it has ended."""

T = TypeVar("T")
Items = list[dict[str, Any]]


class StoredResponse(msgspec.Struct, frozen=True):
    owner: str
    input: Items
    """The items of its own request, each with an id."""
    response: dict[str, Any]
    """As the client got it."""

    @property
    def id(self) -> str:
        return str(self.response["id"])


class StoreUnusable(Exception):
    """The file cannot be read or written; the text says why."""


class Unlinked(LookupError):
    """A conversation refers to a response that is not there (any more)."""


class NotYetEnded(Exception):
    """A conversation refers to a response that is still being made."""


class ResponseStore:
    """One connection, on a thread of its own. Its methods are called in an event loop."""

    def __init__(
        self,
        home: Path,
        *,
        life: str = "",
        clock: Callable[[], float] = time.time,
        most: int = _MOST,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        """`life` names this start of Greenroom: what an earlier one has left unfinished has failed."""
        self._path = home / FILE
        self._life = life
        self._clock = clock
        self._most, self._most_bytes = most, most_bytes
        self._connection: sqlite3.Connection | None = None
        self._unkept: dict[str, StoredResponse] = {}
        """Ended ones that could not be written yet, by id: the disk may be full. The file says otherwise."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: Thread | None = None

    def put(self, stored: StoredResponse) -> None:
        """Keep one, soon. That it could not be kept is logged: its client has its answer already."""
        self._do(lambda: self._put(stored)).add_done_callback(_tell)

    def begin(self, stored: StoredResponse) -> Awaitable[None]:
        """Keep one that is not finished, from now on. Raises StoreUnusable when it is awaited."""
        kept = asyncio.ensure_future(self._result(self._do(lambda: self._put(stored, unfinished=True))))
        # Where it is not awaited, its client has left.
        kept.add_done_callback(lambda done: done.cancelled() or done.exception())
        return kept

    def finish(self, stored: StoredResponse) -> None:
        """Keep the end of one that was begun, soon, unless it has been deleted since.

        Where it cannot be written, it is found here all the same, and written as soon as it can be.
        """
        self._do(lambda: self._finish(stored)).add_done_callback(_tell)

    async def get(self, response_id: str, owner: str) -> StoredResponse | None:
        """One that this owner has made. Raises StoreUnusable, as all methods that follow."""
        return await self._ask(lambda: self._get(response_id, owner))

    async def delete(self, response_id: str, owner: str) -> bool:
        """Whether there was one."""
        return await self._ask(lambda: self._delete(response_id, owner))

    async def conversation(self, response_id: str, owner: str) -> Items:
        """All items from the first to the last of a response, inputs and outputs.

        Raises Unlinked and NotYetEnded.
        """
        return await self._ask(lambda: self._conversation(response_id, owner))

    async def items(self, ids: Collection[str], owner: str) -> dict[str, dict[str, Any]]:
        """Those items, of any response of this owner, that are there."""
        return await self._ask(lambda: self._items(ids, owner))

    async def close(self) -> None:
        """Finish what was asked for, within a bound, and end."""
        if self._thread is not None:
            ended = self._do(self._close)
            self._jobs.put(None)
            self._thread = None
            await asyncio.wait([asyncio.wrap_future(ended)], timeout=_BUSY)

    # on the thread

    async def _ask(self, work: Callable[[], T]) -> T:
        return await self._result(self._do(work))

    async def _result(self, done: concurrent.futures.Future[T]) -> T:
        try:
            return await asyncio.wrap_future(done)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnusable(str(error)) from error

    def _do(self, work: Callable[[], T]) -> concurrent.futures.Future[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                future.set_exception(error)

        if self._thread is None:
            thread = Thread(self._work, "responses")
            thread.start()
            self._thread = thread
        self._jobs.put(run)
        return future

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _close(self) -> None:
        self._catch_up()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            # Only its owner may read what was said.
            self._path.touch(mode=0o600)
            connection = sqlite3.connect(
                self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False
            )
            try:
                for pragma in ("journal_mode = WAL", "foreign_keys = ON", "secure_delete = ON"):
                    connection.execute(f"PRAGMA {pragma}")
                connection.executescript(_SCHEMA)
                self._end_earlier(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _end_earlier(self, connection: sqlite3.Connection) -> None:
        """Say of the responses that an earlier life has left unfinished that they have failed."""
        for response_id, response in connection.execute(_OF_EARLIER_LIVES, (self._life,)).fetchall():
            failed = _encode(_decode(response) | {"status": "failed", "error": _CUT_SHORT})
            connection.execute("UPDATE responses SET response = ? WHERE id = ?", (failed, response_id))
            connection.execute("DELETE FROM unfinished WHERE response = ?", (response_id,))

    def _finish(self, stored: StoredResponse) -> None:
        self._unkept[stored.id] = stored
        while len(self._unkept) > _UNKEPT:
            del self._unkept[next(iter(self._unkept))]
        self._write_ends()

    def _catch_up(self) -> None:
        """Write what could not be written when it ended, if that is possible now."""
        with contextlib.suppress(sqlite3.Error, OSError):
            self._write_ends()

    def _write_ends(self) -> None:
        for stored in tuple(self._unkept.values()):
            self._write_end(stored)
            del self._unkept[stored.id]

    def _write_end(self, stored: StoredResponse) -> None:
        given, response = _encode(stored.input), _encode(stored.response)
        with self._transaction() as connection:
            connection.execute("DELETE FROM unfinished WHERE response = ?", (stored.id,))
            changed = connection.execute(
                "UPDATE responses SET response = ?, size = ? WHERE id = ?",
                (response, len(given) + len(response), stored.id),
            )
            if changed.rowcount:
                _put_items(connection, stored.id, stored.response["output"])
                self._make_room(connection, self._clock())

    def _put(self, stored: StoredResponse, *, unfinished: bool = False) -> None:
        now = self._clock()
        given, response = _encode(stored.input), _encode(stored.response)
        row = (
            *(stored.id, stored.owner, now, stored.response.get("previous_response_id")),
            *(len(given) + len(response), given, response),
        )
        with self._transaction() as connection:
            connection.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            _put_items(connection, stored.id, (*stored.input, *stored.response["output"]))
            if unfinished:
                connection.execute("INSERT INTO unfinished VALUES (?, ?)", (stored.id, self._life))
            self._make_room(connection, now)

    def _make_room(self, connection: sqlite3.Connection, now: float) -> None:
        connection.execute("DELETE FROM responses WHERE at < ?", (now - KEPT,))
        count, size = connection.execute("SELECT count(*), total(size) FROM responses").fetchone()
        while count > 1 and (count > self._most or size > self._most_bytes):
            oldest, freed = connection.execute(
                "SELECT id, size FROM responses ORDER BY at, rowid LIMIT 1"
            ).fetchone()
            connection.execute("DELETE FROM responses WHERE id = ?", (oldest,))
            count, size = count - 1, size - freed

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # Some failures, a full disk among them, may have ended the transaction.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _get(self, response_id: str, owner: str) -> StoredResponse | None:
        if self._connection is None and not self._path.exists():
            return None
        self._catch_up()
        row = (
            self._open()
            .execute(
                "SELECT input, response FROM responses WHERE id = ? AND owner = ? AND at >= ?",
                (response_id, owner, self._clock() - KEPT),
            )
            .fetchone()
        )
        if row is None:
            return None
        return self._unkept.get(response_id) or StoredResponse(owner, _decode_items(row[0]), _decode(row[1]))

    def _delete(self, response_id: str, owner: str) -> bool:
        if self._get(response_id, owner) is None:
            return False
        with self._transaction() as connection:
            connection.execute("DELETE FROM responses WHERE id = ?", (response_id,))
        self._unkept.pop(response_id, None)
        # Its text stays neither in the database (`secure_delete`) nor in the log.
        self._open().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return True

    def _conversation(self, response_id: str, owner: str) -> Items:
        turns: list[Items] = []
        following: str | None = response_id
        while following is not None:
            stored = self._get(following, owner)
            if stored is None or len(turns) >= _CHAIN:
                raise Unlinked(following)
            response = stored.response
            if response.get("status") in UNFINISHED:
                raise NotYetEnded(following)
            following = response.get("previous_response_id")
            turns.append([*stored.input, *response["output"]])
        return [item for turn in reversed(turns) for item in turn]

    def _items(self, ids: Collection[str], owner: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        if self._connection is None and not self._path.exists():
            return found
        for one in ids:
            known = self._open().execute(_LATEST_WITH, (one, owner)).fetchone()
            stored = self._get(known[0], owner) if known is not None else None
            if stored is not None:
                items = (*stored.input, *stored.response["output"])
                found |= {item["id"]: item for item in items if item["id"] == one}
        return found


def _put_items(connection: sqlite3.Connection, response_id: str, items: Iterable[dict[str, Any]]) -> None:
    rows = [(item["id"], response_id) for item in items]
    connection.executemany("INSERT OR IGNORE INTO items VALUES (?, ?)", rows)


def _tell(future: concurrent.futures.Future[None]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _log.warning("a response could not be kept in %s: %s", FILE, error)
