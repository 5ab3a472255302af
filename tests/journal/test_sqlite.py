"""What the SQLite journal guarantees beyond the conformance tests."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sqlite3
import stat
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenroom.actors.journal import maintenance
from greenroom.actors.journal import sqlite as module
from greenroom.actors.journal.conformance import entries, entry, ids
from greenroom.actors.journal.port import JournalError, JournalFailed, JournalFull, NotWritten
from greenroom.actors.journal.reader import read_journal
from greenroom.actors.journal.sqlite import SqliteJournal
from waiting import until


def test_callers_that_wait_together_are_committed_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one group syncs, the next gathers."""
    SqliteJournal(path).close()
    commits, queued = list[int](), list[int]()
    started, go_on = threading.Event(), threading.Event()

    class Slow(sqlite3.Connection):
        def executemany(self, statement: str, rows: Any) -> sqlite3.Cursor:
            commits.append(len(rows))
            started.set()
            assert go_on.wait(10)
            return super().executemany(statement, rows)

    class Counting(threading.Condition):
        """Notified under its lock once an append has been queued."""

        def notify(self, n: int = 1) -> None:
            super().notify(n)
            queued.append(n)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Slow))
    monkeypatch.setattr(module, "threading", SimpleNamespace(**{**vars(threading), "Condition": Counting}))
    journal = SqliteJournal(path)
    threads = [threading.Thread(target=journal.append, args=([entry(f"s{n}", 1)],)) for n in range(9)]
    threads[0].start()
    assert started.wait(10)
    for thread in threads[1:]:
        thread.start()
    until(lambda: len(queued) == 9)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert commits == [1, 8]
    assert len(list(journal.read())) == 9
    journal.close()


def test_a_database_locked_by_another_program_refuses_and_then_goes_on(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    journal = SqliteJournal(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(NotWritten, match="another program has locked"):
        journal.append([entry("a", 1)])
    other.execute("ROLLBACK")
    other.close()
    journal.append([entry("a", 1)])
    assert ids(journal.read()) == ["a/1"]
    journal.close()


def test_rows_written_by_another_program_end_the_journal(journal: SqliteJournal, path: Path) -> None:
    journal.append([entry("a", 1)])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("INSERT INTO events VALUES (2, 1.0, 'b', 1, 't', 1, '', '{}', 0)")
    other.close()
    with pytest.raises(JournalFailed, match=r"UNIQUE|PRIMARYKEY"):
        journal.append([entry("a", 2)])
    with pytest.raises(JournalFailed):
        journal.append([entry("a", 2)])


def test_an_unexpected_error_reaches_every_waiting_caller(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(module, "Draft", break_down)
    with pytest.raises(JournalFailed, match="a bug"):
        journal.append([entry("a", 1)])
    with pytest.raises(JournalFailed, match="a bug"):
        journal.append([entry("a", 1)])


def test_what_failed_is_not_brought_into_the_database_by_closing(journal: SqliteJournal, path: Path) -> None:
    journal.append([entry("a", 1)])
    before, log = path.read_bytes(), path.with_name("journal.db-wal")
    log.rename(path.with_name("aside"))
    with pytest.raises(JournalFailed):
        journal.append([entry("a", 2)])
    journal.close()
    assert path.read_bytes() == before
    path.with_name("aside").rename(log)
    assert log.stat().st_size > 0
    again = SqliteJournal(path)
    assert ids(again.read()) == ["a/1"]
    again.close()


def test_the_log_is_brought_in_when_it_has_grown_and_stays_small(path: Path) -> None:
    journal = SqliteJournal(path)
    for first in range(1, 20_000, 1_000):
        journal.append(entries("a", first, first + 999))
    assert path.with_name("journal.db-wal").stat().st_size < 8 << 20
    journal.close()
    assert not path.with_name("journal.db-wal").exists()


def test_left_alone_the_log_is_brought_into_the_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.01)
    journal = SqliteJournal(path)
    journal.append([entry("a", 1)])

    def brought_in() -> bool:
        with contextlib.closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as database:
            return bool(database.execute("SELECT count(*) FROM events").fetchone() == (1,))

    until(brought_in)
    journal.close()


def test_other_users_cannot_read_the_files(journal: SqliteJournal, path: Path) -> None:
    journal.append([entry("a", 1)])
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_without_its_lock_a_host_keeps_order_itself(path: Path) -> None:
    journal = SqliteJournal(path, lock=False)
    assert not path.with_name("journal.db-lock").exists()
    journal.append([entry("a", 1)])
    journal.close()


def test_two_journals_live_side_by_side_in_one_folder(folder: Path) -> None:
    one, two = SqliteJournal(folder / "one.db"), SqliteJournal(folder / "two.db")
    one.append([entry("a", 1)])
    two.append([entry("b", 1)])
    assert ids(one.read()) == ["a/1"]
    assert ids(two.read()) == ["b/1"]
    one.close()
    two.close()


def test_a_link_to_the_database_is_the_database(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "link.db").symlink_to(folder / "elsewhere" / "journal.db")
    journal = SqliteJournal(folder / "link.db")
    journal.append([entry("a", 1)])
    assert (folder / "elsewhere" / "journal.db-wal").exists()
    assert ids(read_journal(folder / "link.db")) == ["a/1"]
    (folder / "elsewhere" / "journal.db-wal").unlink()
    with pytest.raises(JournalFailed):
        journal.append([entry("a", 2)])
    journal.close()


def test_a_path_with_odd_characters_is_no_trouble(folder: Path) -> None:
    odd = folder / "a ?b#c%20d"
    odd.mkdir()
    journal = SqliteJournal(odd / "journal.db")
    journal.append([entry("a", 1)])
    assert ids(journal.read()) == ["a/1"]
    journal.close()


@pytest.mark.parametrize(
    ("number", "goes_on"), [(errno.EOPNOTSUPP, True), (errno.EFBIG, True), (errno.ENOSPC, False)]
)
def test_a_reserve_that_can_never_be_laid_in_does_not_starve_the_journal_for_good(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, goes_on: bool
) -> None:
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        made.append(connect(*arguments, **options))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", noted)
        journal = SqliteJournal(path)
    # The limit is one of the connection that writes, which is made last.
    long = '{"log":"' + "x" * 9_000 + '"}'
    journal.append([entry("a", 1, data=long)])
    pages = made[-1].execute("PRAGMA page_count").fetchone()[0]
    made[-1].execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(JournalFull):
        journal.append([entry("a", 2, data=long)])

    def cannot(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    monkeypatch.setattr(os, "write", cannot)
    made[-1].execute("PRAGMA max_page_count=1000000")
    if goes_on:
        journal.append([entry("a", 2, data=long)])
    else:
        with pytest.raises(JournalFull):
            journal.append([entry("a", 2, data=long)])
    journal.close()


def test_a_file_system_without_allocation_still_keeps_space_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    journal = SqliteJournal(path)
    journal.append([entry("a", 1)])
    assert path.with_name("journal.db-reserve").stat().st_size == module.RESERVE
    journal.close()


def test_a_disk_that_cannot_be_written_to_is_named_when_it_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SqliteJournal(path).close()

    class ReadOnly(sqlite3.Connection):
        def execute(self, statement: str, *rest: Any) -> sqlite3.Cursor:
            if statement.startswith("UPDATE"):
                raise sqlite3.OperationalError("attempt to write a readonly database")
            return super().execute(statement, *rest)

    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=ReadOnly))
    monkeypatch.setattr(module, "why_no_write", lambda _files: read_only)
    with pytest.raises(JournalError, match=r"cannot be opened for writing: .*says: Read-only file system"):
        SqliteJournal(path)


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_write_that_fails_for_a_moment_is_done_again_and_one_that_keeps_failing_ends_the_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    journal = SqliteJournal(path)
    journal.append([entry("a", 1)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def space_is_back(_files: object) -> None:
        if not is_broken:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(module, "why_no_write", space_is_back)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("journal.db-wal").stat().st_size, limits[1]))
    try:
        if is_broken:
            with pytest.raises(JournalFailed):
                journal.append([entry("a", 2)])
        else:
            journal.append([entry("a", 2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        journal.close()
    assert maintenance.verify(path).is_sound
    assert len([*read_journal(path)]) == (1 if is_broken else 2)
