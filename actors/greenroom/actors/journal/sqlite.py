"""The journal in one SQLite file.

All writing, checkpoints included, is done by one thread on one connection. It takes whatever has been
queued since its last commit and commits that as one transaction: while the disk syncs one group the
next gathers by itself, so no append waits for others. Keeping checkpoints there too is more than order:
SQLite before 3.51.3 can corrupt a database when two connections write and checkpoint at the same
moment (sqlite.org/wal.html#walresetbug).
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence

from greenroom.actors.fork import lock_for_forks
from greenroom.actors.journal import schema
from greenroom.actors.journal.chain import Chain, Draft, Row, Tail, TailWriter, checked, read_tail, records
from greenroom.actors.journal.files import NO_SPACE, Clock, JournalFiles, Reserve, size, why_no_write
from greenroom.actors.journal.port import (
    Entry,
    JournalDamaged,
    JournalError,
    JournalFailed,
    JournalFull,
    NotWritten,
    Record,
)
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.writer_lock import WriterLock

RESERVE = 1024 * 1024
"""Bytes kept back for urgent batches: about a hundred, committed one by one."""

_LAST = "SELECT seq, crc FROM events ORDER BY seq DESC LIMIT 1"

# Pages of log that are worth a checkpoint (4 MiB, as SQLite itself thinks). Under a steady stream of
# appends a smaller log is felt in their 99th percentile.
CHECKPOINT_PAGES = 1000
_FEWEST_PAGES = 32
_PAGE = 4096
_WAL_KEPT = 4 * 1024 * 1024
# Left alone for this long, the log is brought into the database: little is then lost with it.
IDLE_SECONDS = 1.0
BUSY_SECONDS = 5.0

_log = logging.getLogger("greenroom.journal")


class SqliteJournal:
    """The only writer of a journal file. Reading goes through connections of its own."""

    id: str
    """Tells this journal from every other."""
    notices: tuple[str, ...]
    """What was odd when it was opened, in sentences, for the log; no event was lost by it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lock: bool = True,
        clock: Clock = time.time,
        reserve: int = RESERVE,
        lazy: bool = False,
    ) -> None:
        """Open the journal, made when there is none, and check all of it.

        `lock=False` is for a host that makes sure of a single writer itself; `reserve` is in bytes; `lazy`
        leaves the check to the first `read` of everything, so that a system that replays it at once goes
        through it once: what is damaged is then raised there, and nothing is written before that has ended.
        Raises JournalBusy, NotAJournal, JournalTooNew or JournalDamaged, and the files are as they were;
        JournalFull; JournalError when it cannot be opened at all.
        """
        self.files = JournalFiles(path)
        self._chain = Chain()
        self._reserve = Reserve(self.files.reserve, reserve)
        # True from when there was no space until the reserve is laid in and the log is in the database.
        self._starved = False
        self._goes_without = False
        """No reserve can be laid in, and that has been said."""
        self._logged_pages = 0
        self._checkpoint_pages = CHECKPOINT_PAGES
        self._failure = ""
        self._closed = False
        self._queue: list[_Job] = []
        self._wake = threading.Condition()
        self._lock: WriterLock | None = None
        self._clock = clock
        # None until all that is stored has been checked; only then may anything be written.
        self._thread: threading.Thread | None = None
        self._opening = threading.Lock()
        self._in_sqlite = lock_for_forks()
        self._pid = os.getpid()
        try:
            if lock:
                self._lock = WriterLock(self.files.lock)
            leftovers = self._settle_leftovers(clock)
            self._sentinel = JournalReader(self.files.db)
            self.id = self._sentinel.id
            self.notices = leftovers + self._sentinel.notices
        except BaseException as error:
            self._let_go()
            if isinstance(error, (OSError, sqlite3.Error)):
                raise self._not_opened(error) from error
            raise
        if not lazy:
            try:
                self._check()
            except BaseException:
                self.close()
                raise

    @property
    def last_seq(self) -> int:
        """The number of the last event that is stored and checked; 0 while there is none. On any thread."""
        return self._chain.seq

    def append(self, batch: Sequence[Entry], *, urgent: bool = False) -> list[Record]:
        if self._is_forked:
            raise NotWritten(f"{self.files.db} belongs to process {self._pid}; this is a fork of it")
        try:
            job = _Job(checked(batch), urgent)
        except MemoryError as error:
            # Nothing has been handed to the writer yet.
            raise NotWritten(
                "there is not enough memory for the batch; end some other programs and try again"
            ) from error
        if self._thread is None and not self._closed:
            self._check()
        with self._wake:
            if self._failure:
                raise JournalFailed(self._failure)
            if self._closed:
                raise NotWritten("the journal is closed")
            if not job.batch:
                return []
            self._queue.append(job)
            self._wake.notify()
        return job.outcome()

    def read(self, *, after: int = 0, stream: str | None = None) -> Iterator[Record]:
        if self._is_forked:
            raise JournalError(f"{self.files.db} is open in process {self._pid}; this is a fork of it")
        is_first = self._thread is None and not self._closed
        if is_first and after == 0 and stream is None:
            for rows in self._checked_rows():
                yield from records(rows)
            return
        if is_first:
            self._check()
        head = self._chain.heads.get(stream, 0) if stream is not None else 0
        with self._reader() as reader:
            if stream is None:
                yield from reader.read(after=after)
            else:
                yield from reader.read_stream(stream, after=after, head=head)

    def close(self) -> None:
        """See `Journal.close`; does nothing in a forked child, where the files are the parent's."""
        if self._is_forked:
            return
        with self._opening:
            was_closed, thread = self._closed, self._thread
            with self._wake:
                self._closed = True
                self._wake.notify()
        if thread is not None:
            thread.join()
        elif not was_closed:
            self._sentinel.close()
            self._let_go()

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._pid

    # -- opening ------------------------------------------------------------------------------------

    def _reader(self) -> JournalReader:
        try:
            return JournalReader(self.files.db)
        except FileNotFoundError as error:
            raise JournalError(f"{self.files.db} was removed while it was in use") from error

    def _check(self) -> None:
        for _ in self._checked_rows():
            pass

    def _checked_rows(self) -> Iterator[list[Row]]:
        """All that is stored; once it has been gone through to its end without a fault, others may follow."""
        chain = Chain()
        with self._reader() as reader:
            for rows in reader.chunks():
                chain.follow(rows)
                yield rows
        with self._opening:
            if self._thread is not None or self._closed:
                return
            self._chain = chain
            try:
                self._start_writing(self._clock)
            except (OSError, sqlite3.Error) as error:
                raise self._not_opened(error) from error
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _settle_leftovers(self, clock: Clock) -> tuple[str, ...]:
        """Make the journal if there is none, minding what an earlier one may have left.

        SQLite itself would delete a log without a database.
        """
        held = size(self.files.db)
        if held:
            schema.discard_draft(self.files)
            return ()
        wal = size(self.files.wal) or 0
        tail = read_tail(self.files.tail)
        written = tail.seq if tail is not None else 0
        if held == 0 and (wal or written):
            raise JournalDamaged(
                f"{self.files.db} is empty, but it held {written or 'an unknown number of'} events", 1
            )
        said = []
        if wal:
            aside = self.files.aside(clock)
            os.rename(self.files.wal, aside.wal)
            said.append(
                f"{self.files.wal.name} was left without {self.files.db.name} and is now {aside.wal.name}."
            )
        if written:
            said.append(
                f"{self.files.db.name}, which held {written} events, is gone; a new journal begins, and what "
                "is installed is found again on disk."
            )
        self.files.tail.unlink(missing_ok=True)
        self.files.shm.unlink(missing_ok=True)
        schema.create(self.files, clock)
        return tuple(said)

    def _not_opened(self, error: OSError | sqlite3.Error) -> JournalError:
        why = why_no_write(self.files) if isinstance(error, sqlite3.OperationalError) else None
        reason = f"{error}; the disk says: {why.strerror}" if why is not None else str(error)
        sentence = f"{self.files.db} cannot be opened for writing: {reason}"
        if _is_full(self.files, error):
            return JournalFull(sentence)
        if isinstance(error, sqlite3.DatabaseError) and _primary(error) == sqlite3.SQLITE_CORRUPT:
            # All events were read; the damage is where the next one would go.
            return JournalDamaged(sentence, self._chain.seq + 1)
        return JournalError(sentence)

    def _start_writing(self, clock: Clock) -> None:
        self._connection = self._connect()
        try:
            self._repair()
            mark = f"{os.getpid()} {clock()!r}"
            try:
                self._mark_in_use(mark)
            except sqlite3.Error as error:
                if not _is_full(self.files, error):
                    raise
                self._reserve.give_up()
                self._mark_in_use(mark)
            self._in_use = self._files_in_use()
            # So that the sentinel, too, has the log open, if there was none before.
            self._sentinel.last_seq()
            self._tail = TailWriter(self.files.tail, Tail(self.id, self._chain.seq, self._chain.crc))
        except BaseException:
            # The sentinel is still open, so this is not the last connection and changes nothing.
            self._connection.close()
            raise
        try:
            self._reserve.lay_in()
        except OSError as error:
            self._log_no_reserve(logging.WARNING, error)

    def _log_no_reserve(self, level: int, error: OSError) -> None:
        _log.log(level, "no space can be reserved beside %s for a full disk: %s", self.files.db, error)

    def _repair(self) -> None:
        """Check what surrounds the rows, which are good: refuse triggers, rebuild a damaged index."""
        found = schema.triggers(self._connection)
        if found:
            raise JournalDamaged(schema.has_triggers(str(self.files.db), found), self._chain.seq + 1)
        if schema.index_is_whole(self._connection, self._chain.heads):
            return
        _log.warning("%s: its index is damaged and is rebuilt; no event is lost", self.files.db)
        self._connection.execute("REINDEX events")
        self._logged_pages = CHECKPOINT_PAGES
        if not schema.index_is_whole(self._connection, self._chain.heads):
            what = f"{self.files.db} is damaged: its index cannot be rebuilt"
            raise JournalDamaged(what, self._chain.seq + 1)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.files.db, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS
        )
        try:
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            for pragma in (
                "synchronous=FULL",
                "fullfsync=1",
                "checkpoint_fullfsync=1",
                "wal_autocheckpoint=0",
                f"journal_size_limit={_WAL_KEPT}",
                "cell_size_check=1",
                "trusted_schema=0",
            ):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        if mode != "wal":
            connection.close()
            raise JournalError(f"{self.files.db} cannot be opened for writing: SQLite's WAL mode is refused")
        return connection

    def _mark_in_use(self, mark: str) -> None:
        """Note in the database that a process writes to it: so a copy made meanwhile can be recognised."""
        self._connection.execute("UPDATE meta SET in_use = ?", (mark,))
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    # -- the writer's thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._write_until_closed()
        except BaseException as error:  # noqa: BLE001 - callers that wait must get it, whatever it is
            self._fail(error)
            # Not the last connection: the sentinel is open. So this does not write the log into the
            # database, which would be to retry what has failed.
            self._connection.close()
            self._sentinel.close()
        else:
            with self._in_sqlite:
                self._end_in_order()
        finally:
            self._tail.close()
            self._let_go()

    def _write_until_closed(self) -> None:
        while True:
            with self._wake:
                if not self._queue and not self._closed:
                    self._wake.wait(IDLE_SECONDS if self._logged_pages else None)
                jobs, self._queue = self._queue, []
                is_closing = self._closed
            if is_closing and not jobs:
                return
            with self._in_sqlite:
                if jobs:
                    self._commit(jobs)
                if self._logged_pages >= (self._checkpoint_pages if jobs else 1):
                    self._checkpoint()

    def _commit(self, jobs: list[_Job]) -> None:
        """Store the jobs or refuse them; whatever else happens is for `_run`, and ends the journal.

        1. Short of space since an earlier commit, and still so: only what is urgent.
        2. Store them all.
        3. No space: bring the log into the database, so that it starts again from its beginning; retry.
        4. No space: give up the reserve; store what is urgent and refuse the rest.
        """
        try:
            if self._starved and not self._space_is_back():  # 1
                jobs = self._refuse_what_can_wait(jobs)
            if self._store(jobs):  # 2
                return
            # From now on in good time, so that what is urgent finds room in the log.
            self._checkpoint_pages = max(_FEWEST_PAGES, self._logged_pages // 2)
            if self._checkpoint() and self._store(jobs):  # 3
                return
            self._starved = True  # 4
            jobs = self._refuse_what_can_wait(jobs)
            self._reserve.give_up()
            if not self._store(jobs):
                for job in jobs:
                    job.refuse(self._full())
        except BaseException as error:
            for job in jobs:
                job.refuse(JournalFailed(_failure(self.files, error)))
            raise

    def _store(self, jobs: list[_Job], *, again: bool = True) -> bool:
        """One transaction for all jobs whose versions follow; False when there is no space for it.

        A write that failed, and would succeed now, is done `again`: space may have become free in between.
        """
        draft = Draft(self._chain)
        drafted = []
        for job in jobs:
            if job.has_ended:
                continue
            try:
                drafted.append((job, draft.add(job.batch)))
            except NotWritten as refusal:
                job.refuse(refusal)
        if not drafted:
            return True
        self._expect_files_in_place()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(schema.INSERT, draft.rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            is_full = _is_full(self.files, error)
            is_over = again and not is_full and _is_failed_write(error) and why_no_write(self.files) is None
            if not (is_full or is_over or _is_busy(error)) or not self._is_rolled_back():
                raise
            if is_over:
                return self._store(jobs, again=False)
            if is_full:
                return False
            for job, _ in drafted:
                job.refuse(NotWritten(f"another program has locked {self.files.db}; close it and try again"))
            return True
        self._tail.move(draft.seq, draft.crc)
        draft.accept()
        self._logged_pages += _pages(draft.rows)
        for job, rows in drafted:
            job.done(records(rows))
        return True

    def _is_rolled_back(self) -> bool:
        """Proof that a failed transaction is not stored: the journal ends where it did."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            last = self._connection.execute(_LAST).fetchone() or (0, 0)
        except sqlite3.Error:
            return False
        return bool(last == (self._chain.seq, self._chain.crc))

    def _expect_files_in_place(self) -> None:
        """Raise JournalFailed if an open file was removed: what we write there could never be read."""
        if self._files_in_use() != self._in_use:
            raise JournalFailed(f"{self.files.db} or its log was removed or replaced while it was in use")

    def _files_in_use(self) -> tuple[int, int]:
        try:
            return os.stat(self.files.db).st_ino, os.stat(self.files.wal).st_ino
        except FileNotFoundError:
            return 0, 0

    def _checkpoint(self) -> bool:
        """Bring what is logged into the database; False, and only urgent batches, when it has no space."""
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            if _is_full(self.files, error):
                self._starved = True
                return False
            if _is_busy(error):
                return False
            raise
        self._logged_pages = 0
        return True

    def _space_is_back(self) -> bool:
        try:
            self._reserve.lay_in()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return False
            # Retrying would not help either: go on without a reserve, as at a start. Say it once.
            level = logging.DEBUG if self._goes_without else logging.WARNING
            self._goes_without = True
            self._log_no_reserve(level, error)
        self._starved = not self._checkpoint()
        return not self._starved

    def _refuse_what_can_wait(self, jobs: list[_Job]) -> list[_Job]:
        for job in jobs:
            if not job.is_urgent:
                job.refuse(self._full())
        return [job for job in jobs if job.is_urgent]

    def _full(self) -> JournalFull:
        return JournalFull(f"there is no space for {self.files.db} to grow; free some and try again")

    def _fail(self, error: BaseException) -> None:
        with self._wake:
            self._failure = _failure(self.files, error)
            jobs, self._queue = self._queue, []
        _log.error("%s", self._failure, exc_info=error)
        for job in jobs:
            job.refuse(JournalFailed(self._failure))

    def _end_in_order(self) -> None:
        """Leave one file that is whole by itself; if that does not work, the two that are."""
        try:
            self._mark_in_use("")
        except sqlite3.Error as error:
            _log.warning("%s: closed with what is left in %s: %s", self.files.db, self.files.wal.name, error)
            self._connection.close()
            self._sentinel.close()
        else:
            self._sentinel.close()
            self._connection.close()


class _Job:
    """A batch on its way through the writer's thread, and who waits for it."""

    __slots__ = ("_error", "_finished", "_records", "batch", "has_ended", "is_urgent")

    def __init__(self, batch: tuple[Entry, ...], urgent: bool) -> None:
        self.batch = batch
        self.is_urgent = urgent
        self.has_ended = False
        self._records: list[Record] = []
        self._error: JournalError | None = None
        # A bare lock in place of an Event: it is made and waited for once an append.
        self._finished = threading.Lock()
        self._finished.acquire()

    def outcome(self) -> list[Record]:
        self._finished.acquire()
        if self._error is not None:
            raise self._error
        return self._records

    def done(self, stored: list[Record]) -> None:
        self._records = stored
        self.has_ended = True
        self._finished.release()

    def refuse(self, error: JournalError) -> None:
        """End with this error, unless it has ended already."""
        if not self.has_ended:
            self._error = error
            self.has_ended = True
            self._finished.release()


def _pages(rows: Sequence[Row]) -> int:
    """About how many pages a commit of these rows logs: the table's last, and each stream's in the index."""
    return 2 + len({row[2] for row in rows}) + sum(len(row[7]) for row in rows) // _PAGE


def _failure(files: JournalFiles, error: BaseException) -> str:
    if isinstance(error, JournalFailed):
        return str(error)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    why = why_no_write(files) if isinstance(error, sqlite3.Error) else None
    said = f"{error}; the disk says: {why.strerror}" if why is not None else str(error)
    return (
        f"writing to {files.db} failed ({name}: {said}), and it is not known how much of it is on disk; "
        "check the disk, then start again"
    )


def _is_full(files: JournalFiles, error: sqlite3.Error | OSError) -> bool:
    """No space, or a limit on the file's size, met before the commit was whole in the log.

    Not an error of a sync, which may also name a lack of space: by then it was.
    """
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    if _is_failed_write(error):
        why = why_no_write(files)
        return why is not None and why.errno in NO_SPACE
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL


def _is_failed_write(error: sqlite3.Error) -> bool:
    """Not of a sync: nothing of what failed is on its way to the disk."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_WRITE


def _is_busy(error: sqlite3.Error) -> bool:
    return _primary(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
