"""Verify, count, copy, export, import, put away."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.journal import maintenance
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

LeftBehind = tuple[Path, tuple[Record, ...]]


@pytest.fixture
def killed(left_behind: LeftBehind, folder: Path) -> Path:
    """A journal whose writer was killed: half of its 240 events are only in the log."""
    shutil.copytree(left_behind[0], folder / "killed")
    return folder / "killed" / "journal.db"


def exported(path: Path) -> list[bytes]:
    out = io.BytesIO()
    maintenance.export(path, out)
    return out.getvalue().splitlines(keepends=True)


def change(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(sql)
    connection.close()


def test_verifying_a_sound_journal_finds_it_sound(killed: Path) -> None:
    found = maintenance.verify(killed)
    assert found.is_sound
    assert (found.events, found.streams, found.damaged_at) == (240, 6, None)


def test_verifying_a_damaged_journal_tells_the_place(killed: Path) -> None:
    change(killed, "UPDATE events SET data = '{}' WHERE seq = 77")
    found = maintenance.verify(killed)
    assert not found.is_sound
    assert (found.events, found.damaged_at) == (76, 77)
    assert "event 77 is not what was written" in found.problems[0]


def test_verifying_finds_an_index_that_does_not_fit(killed: Path) -> None:
    connection = sqlite3.connect(killed, isolation_level=None)
    connection.execute("PRAGMA writable_schema=ON")
    page = connection.execute("SELECT rootpage FROM sqlite_master WHERE tbl_name='events' AND type='index'")
    root = page.fetchone()[0]
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    content = bytearray(killed.read_bytes())
    place = content.index(b"runner/", (root - 1) * 4096)
    content[place] ^= 1
    killed.write_bytes(content)
    found = maintenance.verify(killed)
    assert found.damaged_at is None
    assert found.problems


def test_verifying_a_foreign_file_finds_no_journal(path: Path) -> None:
    path.write_text("nothing of ours")
    with pytest.raises(NotAJournal):
        maintenance.verify(path)


def test_a_journal_with_a_broken_description_of_itself_is_damaged(killed: Path) -> None:
    change(killed, "DELETE FROM meta")
    found = maintenance.verify(killed)
    assert found.damaged_at == 1


def test_statistics_count_events_by_stream_and_type(killed: Path) -> None:
    found = maintenance.stats(killed)
    assert found.events == 240
    assert found.streams == {f"runner/{name}": 40 for name in "abcdef"}
    assert found.types == {"engine_ready": 240}
    assert found.first_at == found.last_at == 1_790_000_000.25
    assert found.bytes > 50_000


def test_an_empty_journal_has_no_times(path: Path) -> None:
    SqliteJournal(path, clock=lambda: 12.5).close()
    found = maintenance.stats(path)
    assert (found.events, found.first_at, found.last_at, found.created) == (0, 0.0, 0.0, 12.5)


def test_an_export_is_one_line_of_json_an_event_with_the_data_as_json(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.append([entry("a", 1, data='{"x": "☃", "n": 1.50}')])
    first, second = exported(path)
    journal.close()
    assert json.loads(first)["events"] == 1
    assert json.loads(second)["data"] == {"x": "☃", "n": 1.5}
    assert '{"x": "☃", "n": 1.50}' in second.decode()


def test_what_was_exported_is_imported_event_for_event(
    killed: Path, left_behind: LeftBehind, path: Path
) -> None:
    assert maintenance.import_(path, exported(killed)) == 240
    assert tuple(read_journal(path)) == left_behind[1]
    assert exported(path) == exported(killed)
    journal = SqliteJournal(path)
    journal.append([entry("runner/a", 41)])
    journal.close()


def test_an_import_into_an_empty_journal_replaces_it(killed: Path, path: Path) -> None:
    SqliteJournal(path).close()
    maintenance.import_(path, exported(killed))
    journal = SqliteJournal(path)
    assert journal.notices == ()
    assert len(list(journal.read())) == 240
    journal.close()


def test_an_import_into_a_journal_with_events_is_refused(killed: Path, path: Path) -> None:
    lines = exported(killed)
    before = killed.read_bytes()
    with pytest.raises(JournalError, match="holds 240 events; import into an empty journal"):
        maintenance.import_(killed, lines)
    assert killed.read_bytes() == before


def test_an_import_into_a_journal_in_use_is_refused(killed: Path, path: Path) -> None:
    journal = SqliteJournal(path)
    with pytest.raises(JournalBusy):
        maintenance.import_(path, exported(killed))
    journal.close()


@pytest.mark.parametrize(
    ("spoil", "seq"),
    [
        (lambda lines: lines[:-1], 240),
        (lambda lines: lines[:100] + lines[101:], 100),
        (lambda lines: [*lines[:5], lines[5].replace(b"asked", b"Asked"), *lines[6:]], 5),
        (lambda lines: [*lines[:5], lines[5][:40], *lines[6:]], 5),
        (lambda lines: [*lines, lines[-1]], 241),
    ],
    ids=["cut short", "a line missing", "a word changed", "a line broken off", "a line twice"],
)
def test_a_damaged_export_is_refused_with_the_number_and_nothing_is_made(
    killed: Path, path: Path, spoil: Any, seq: int
) -> None:
    with pytest.raises(JournalDamaged) as caught:
        maintenance.import_(path, spoil(exported(killed)))
    assert caught.value.seq == seq
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["journal.db-lock"]


def test_an_import_of_what_is_not_an_export_is_refused(path: Path) -> None:
    for lines in ([], [b"hello\n"], [b'{"a":1}\n'], [b"\xff\xfe\n"]):
        with pytest.raises(NotAJournal, match="not a journal export"):
            maintenance.import_(path, lines)
    assert not path.exists()


def test_an_export_of_a_newer_format_is_refused(killed: Path, path: Path) -> None:
    lines = exported(killed)
    lines[0] = lines[0].replace(b'"greenroom_journal":1', b'"greenroom_journal":2')
    with pytest.raises(JournalTooNew, match="newer Greenroom"):
        maintenance.import_(path, lines)


def test_the_readable_beginning_of_a_damaged_journal_is_exported_before_the_refusal(killed: Path) -> None:
    change(killed, "UPDATE events SET data = '{}' WHERE seq = 77")
    out = io.BytesIO()
    with pytest.raises(JournalDamaged):
        maintenance.export(killed, out)
    assert len(out.getvalue().splitlines()) == 1 + 76


def test_a_backup_of_a_journal_in_use_is_one_whole_file(path: Path, tmp_path: Path) -> None:
    journal = SqliteJournal(path)
    journal.append(entries("a", 1, 500))
    target = tmp_path / "copy.db"
    assert maintenance.backup(path, target) == 500
    assert [file.name for file in tmp_path.iterdir()] == ["copy.db"]
    journal.append([entry("a", 501)])
    journal.close()
    assert len(list(read_journal(target))) == 500
    again = SqliteJournal(target)
    assert again.notices == ()
    again.append([entry("a", 501)])
    again.close()


def test_a_backup_overwrites_no_file(killed: Path, path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        maintenance.backup(killed, path)
    assert path.read_text() == "mine"


def test_a_backup_of_a_damaged_journal_is_not_made_as_if_it_were_whole(killed: Path, path: Path) -> None:
    change(killed, "UPDATE events SET data = '{}' WHERE seq = 77")
    with pytest.raises(JournalDamaged):
        maintenance.backup(killed, path)
    assert [file for file in path.parent.iterdir() if file.is_file()] == []


def test_a_damaged_journal_is_renamed_and_a_new_one_can_begin(killed: Path) -> None:
    change(killed, "UPDATE events SET data = '{}' WHERE seq = 77")
    before = killed.read_bytes()
    done = maintenance.set_aside(killed, clock=lambda: 0.0)
    assert done.path.name == "journal.19700101T000000Z.db"
    assert done.path.read_bytes() == before
    assert (done.events, done.kept) == (76, 0)
    assert "event 77" in done.reason
    journal = SqliteJournal(killed)
    assert journal.notices == ()
    assert list(journal.read()) == []
    journal.close()


def test_the_log_of_a_damaged_journal_is_renamed_with_it(killed: Path, left_behind: LeftBehind) -> None:
    done = maintenance.set_aside(killed)
    assert done.reason == ""
    assert tuple(read_journal(done.path)) == left_behind[1]


def test_the_readable_beginning_of_a_damaged_journal_can_be_kept(
    killed: Path, left_behind: LeftBehind
) -> None:
    killed.with_name("journal.db-wal").unlink()
    with pytest.raises(JournalDamaged):
        SqliteJournal(killed)
    done = maintenance.set_aside(killed, keep=True)
    assert (done.events, done.kept) == (120, 120)
    assert "240 were written" in done.reason
    journal = SqliteJournal(killed)
    assert journal.notices == ()
    assert tuple(journal.read()) == left_behind[1][:120]
    assert journal.append([entry("runner/a", 21)])[0].seq == 121
    journal.close()


def test_a_file_that_is_not_a_journal_at_all_is_set_aside_too(path: Path) -> None:
    path.write_text("nothing of ours")
    done = maintenance.set_aside(path)
    assert done.path.read_text() == "nothing of ours"
    assert "not an SQLite database" in done.reason
    SqliteJournal(path).close()


def test_journals_set_aside_twice_in_a_second_are_both_kept(path: Path) -> None:
    for _ in range(2):
        SqliteJournal(path).close()
        maintenance.set_aside(path, clock=lambda: 0.0)
    names = sorted(file.name for file in path.parent.glob("journal.1970*.db"))
    assert names == ["journal.19700101T000000Z-1.db", "journal.19700101T000000Z.db"]


def test_a_journal_in_use_is_not_set_aside(path: Path) -> None:
    journal = SqliteJournal(path)
    with pytest.raises(JournalBusy) as caught:
        maintenance.set_aside(path)
    assert caught.value.pid == os.getpid()
    journal.append([entry("a", 1)])
    assert ids(journal.read()) == ["a/1"]
    journal.close()


def test_setting_aside_makes_nothing_where_there_is_no_journal(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        maintenance.set_aside(path)
    assert list(path.parent.iterdir()) == []


def test_reading_a_copy_says_what_a_reader_says(killed: Path) -> None:
    with JournalReader(killed) as reader:
        assert reader.id == maintenance.stats(killed).id
