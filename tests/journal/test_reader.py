"""Reading beside a writer, from folders that cannot be written to, and things that are no journal."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.journal import schema
from greenroom.actors.journal.chain import checksum
from greenroom.actors.journal.conformance import entries, entry, ids
from greenroom.actors.journal.port import (
    JournalBusy,
    JournalDamaged,
    JournalError,
    JournalTooNew,
    NotAJournal,
    Record,
)
from greenroom.actors.journal.reader import JournalReader, read_journal
from greenroom.actors.journal.sqlite import SqliteJournal


def test_a_second_writer_is_refused_with_the_pid_of_the_first(journal: SqliteJournal, path: Path) -> None:
    with pytest.raises(JournalBusy, match=str(os.getpid())) as caught:
        SqliteJournal(path)
    assert caught.value.pid == os.getpid()
    journal.append([entry("a", 1)])


def test_a_second_writer_in_another_process_is_refused(path: Path) -> None:
    program = (
        "import sys; from greenroom.actors.journal.sqlite import SqliteJournal as J; "
        "j = J(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(JournalBusy) as caught:
            SqliteJournal(path)
        assert caught.value.pid == other.pid
        other.send_signal(signal.SIGKILL)
        other.wait(10)
    # The kernel has given the lock back.
    SqliteJournal(path).close()


def test_a_writer_that_does_not_open_gives_the_lock_back(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    for _ in range(2):
        with pytest.raises(NotAJournal):
            SqliteJournal(path)


def test_a_reader_sees_what_was_committed(journal: SqliteJournal, path: Path) -> None:
    journal.append(entries("a", 1, 3))
    with JournalReader(path) as reader:
        assert ids(reader.read()) == ["a/1", "a/2", "a/3"]
        journal.append([entry("b", 1)])
        assert ids(reader.read(after=2)) == ["a/3", "b/1"]
        assert ids(reader.read(stream="b")) == ["b/1"]
        assert reader.last_seq() == 4
        assert reader.notices == ()


def test_a_slow_reader_does_not_keep_the_log_from_being_brought_in(
    journal: SqliteJournal, path: Path
) -> None:
    journal.append(entries("a", 1, 2_000))
    reading = read_journal(path)
    next(reading)
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
    assert len(list(reading)) == 1_999


def test_following_a_journal_gives_what_was_and_then_what_comes(journal: SqliteJournal, path: Path) -> None:
    journal.append(entries("a", 1, 3))
    stop = threading.Event()
    got: list[Record] = []
    seen = threading.Semaphore(0)

    def follow() -> None:
        with JournalReader(path) as reader:
            for record in reader.follow(after=1, stop=stop, interval=0.01):
                got.append(record)
                seen.release()

    thread = threading.Thread(target=follow)
    thread.start()
    assert seen.acquire(timeout=10)
    assert seen.acquire(timeout=10)
    for version in range(4, 8):
        journal.append([entry("a", version)])
        assert seen.acquire(timeout=10), "a committed event is not seen"
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert ids(got) == [f"a/{version}" for version in range(2, 8)]


def test_following_a_journal_goes_on_over_a_restart_of_the_writer(path: Path) -> None:
    SqliteJournal(path).close()
    with JournalReader(path) as reader:
        following = reader.follow(interval=0.01)
        for version in range(1, 4):
            journal = SqliteJournal(path)
            journal.append([entry("a", version)])
            journal.close()
            assert next(following).version == version


def test_following_a_journal_ends_with_a_sentence_when_it_is_replaced(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.append([entry("a", 1)])
    journal.close()
    with JournalReader(path) as reader:
        following = reader.follow(interval=0.01)
        assert next(following).id == "a/1"
        os.rename(path, path.with_name("old.db"))
        SqliteJournal(path).close()
        with pytest.raises(JournalError, match="removed or replaced"):
            next(following)


def test_a_reader_cannot_write(journal: SqliteJournal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, connections = sqlite3.connect, list[sqlite3.Connection]()

    def noting(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connections.append(connect(*arguments, **more))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", noting)
    with JournalReader(path), pytest.raises(sqlite3.OperationalError, match="readonly"):
        connections[-1].execute("DELETE FROM events")


PROGRAM = """
import os, sys
from greenroom.actors.journal.reader import JournalReader
import tempfile
if os.geteuid() == 0:
    os.seteuid(65534)
assert not os.access(os.path.dirname(sys.argv[1]), os.W_OK, effective_ids=True)
with JournalReader(sys.argv[1]) as reader:
    print(len(list(reader.read())), *reader.notices)
    following = reader.follow(after=0, interval=0.01)
    print(next(following).id)
"""


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="greenroom-test-"))
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def read_there(folder: Path) -> str:
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    before = sorted(folder.iterdir())
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "journal.db")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 0, ended.stderr
    assert sorted(folder.iterdir()) == before
    return ended.stdout


def test_a_closed_journal_is_read_where_nothing_can_be_written(closed_folder: Path) -> None:
    journal = SqliteJournal(closed_folder / "journal.db")
    journal.append(entries("a", 1, 7))
    journal.close()
    assert read_there(closed_folder) == "7\na/1\n"


def test_a_journal_whose_writer_was_killed_is_read_where_nothing_can_be_written(
    closed_folder: Path, left_behind: Any
) -> None:
    source, history = left_behind
    for name in ("journal.db", "journal.db-wal", "journal.db-tail"):
        shutil.copy(source / name, closed_folder / name)
    assert read_there(closed_folder) == f"{len(history)}\n{history[0].id}\n"


def test_a_journal_in_use_is_read_where_nothing_can_be_written(closed_folder: Path) -> None:
    journal = SqliteJournal(closed_folder / "journal.db")
    journal.append(entries("a", 1, 7))
    assert read_there(closed_folder) == "7\na/1\n"
    journal.close()


def test_a_file_that_is_not_a_database_is_refused(path: Path) -> None:
    path.write_bytes(b"\x00\x01 something else entirely" * 300)
    refused(path, NotAJournal, "not an SQLite database; it was not touched")


def test_a_short_text_file_is_refused(path: Path) -> None:
    path.write_text("hello\n")
    refused(path, NotAJournal, "not an SQLite database; it was not touched")


def test_the_database_of_another_program_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE events(seq INTEGER PRIMARY KEY)")
    connection.close()
    refused(path, NotAJournal, "not a journal of Greenroom; it was not touched")


def test_a_journal_of_a_newer_format_is_refused(path: Path) -> None:
    SqliteJournal(path).close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA user_version = {schema.FORMAT + 1}")
    connection.close()
    refused(path, JournalTooNew, r"newer Greenroom \(log format 2, this version reads up to 1\)")


def test_a_journal_without_its_tables_is_refused(path: Path) -> None:
    SqliteJournal(path).close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TABLE events")
    connection.close()
    refused(path, JournalDamaged, "damaged")


def test_a_path_where_there_is_nothing_is_refused(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no journal"):
        JournalReader(path)
    assert not path.exists()


def test_a_journal_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be opened for writing"):
        SqliteJournal(tmp_path / "nowhere" / "journal.db")


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    journal = SqliteJournal(path)
    journal.append([entry("a", 1)])
    assert ids(journal.read()) == ["a/1"]
    journal.close()


def refused(path: Path, kind: type[JournalError], sentence: str) -> None:
    before = path.read_bytes()
    with pytest.raises(kind, match=sentence), JournalReader(path) as reader:
        list(reader.read())
    with pytest.raises(kind, match=sentence):
        SqliteJournal(path)
    assert path.read_bytes() == before


@pytest.fixture
def changed(path: Path) -> Iterator[sqlite3.Connection]:
    journal = SqliteJournal(path)
    journal.append([entry(stream, version) for version in range(1, 301) for stream in ("a", "b")])
    journal.close()
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


@pytest.mark.parametrize("seq", [1, 255, 256, 257, 600])
@pytest.mark.parametrize(
    "change",
    [
        "at = at + 1e-6",
        "stream = 'c'",
        "version = version + 1000",
        "type = 'engine_lost'",
        "schema = 2",
        "cause = ''",
        "data = '{\"n\":2}'",
        "crc = crc + 1",
        "seq = 1000",
    ],
)
def test_a_change_in_any_column_is_found_at_its_row(
    changed: sqlite3.Connection, path: Path, change: str, seq: int
) -> None:
    changed.execute(f"UPDATE events SET {change} WHERE seq = {seq}")
    found_at(path, seq)


@pytest.mark.parametrize("seq", [1, 256, 300, 600])
def test_a_missing_row_is_found(changed: sqlite3.Connection, path: Path, seq: int) -> None:
    changed.execute(f"DELETE FROM events WHERE seq = {seq}")
    found_at(path, seq)


def test_two_rows_in_each_others_place_are_found(changed: sqlite3.Connection, path: Path) -> None:
    for step in ("seq = -1 WHERE seq = 10", "seq = 10 WHERE seq = 11", "seq = 11 WHERE seq = -1"):
        changed.execute(f"UPDATE events SET {step}")
    found_at(path, 10)


def test_a_row_put_in_is_found(changed: sqlite3.Connection, path: Path) -> None:
    changed.execute(
        "INSERT INTO events SELECT 601, at, 'd', 1, type, schema, cause, data, 7 FROM events LIMIT 1"
    )
    found_at(path, 601)


def test_a_well_made_row_that_does_not_follow_in_its_stream_is_found_by_the_writer(
    changed: sqlite3.Connection, path: Path
) -> None:
    crc = changed.execute("SELECT crc FROM events WHERE seq = 600").fetchone()[0]
    row = (601, 1.0, "a", 302, "t", 1, "", "{}")
    changed.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, checksum(row, crc)))
    with pytest.raises(JournalDamaged, match="event 601 is number 302 of stream 'a', which had 300"):
        SqliteJournal(path)


def test_a_damaged_index_cannot_hide_the_end_of_a_stream(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.append(entries("a", 1, 3))
    # As if the index had lost the last one: it cannot be damaged so that SQLite does not notice.
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("DELETE FROM events WHERE stream = 'a' AND version = 3")
        other.commit()
    with pytest.raises(JournalDamaged, match="stream a ends at 2, but 3 were written"):
        list(journal.read(stream="a"))
    journal.close()


def found_at(path: Path, seq: int) -> None:
    got: list[Record] = []
    with pytest.raises(JournalDamaged) as caught, JournalReader(path) as reader:
        got.extend(reader.read())
    assert caught.value.seq == seq
    assert [record.seq for record in got] == list(range(1, seq))
    with pytest.raises(JournalDamaged) as caught:
        SqliteJournal(path)
    assert caught.value.seq == seq
