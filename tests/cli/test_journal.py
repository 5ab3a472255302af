"""`greenroom journal`: on real journals, sound and damaged ones."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.journal.conformance import entries
from greenroom.actors.journal.reader import read_journal
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.runner import exit_codes


@pytest.fixture
def journal(home: Path) -> Path:
    """A journal with thirty events in two streams."""
    path = home / "journal.db"
    journal = SqliteJournal(path)
    journal.append(entries("runner/mlx", 1, 20))
    journal.append(entries("scheduler", 1, 10))
    journal.close()
    return path


def damage(path: Path, seq: int) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE events SET data = '{}' WHERE seq = ?", (seq,))
    connection.close()


def test_verify_says_that_a_journal_is_sound(greenroom: Any, journal: Path) -> None:
    outcome = greenroom("journal", "verify")
    assert outcome.code == exit_codes.OK
    assert outcome.out == f"{journal} is sound: 30 good events in 2 streams.\n"


def test_verify_names_the_first_bad_event_and_what_to_do(greenroom: Any, journal: Path) -> None:
    damage(journal, 12)
    outcome = greenroom("journal", "verify")
    assert outcome.code == exit_codes.JOURNAL
    assert "event 12" in outcome.out
    assert "is damaged: 11 good events" in outcome.out
    assert "greenroom journal set-aside" in outcome.err
    as_json = greenroom("journal", "verify", "--json")
    assert as_json.code == exit_codes.JOURNAL
    assert json.loads(as_json.out)["damaged_at"] == 12


def test_stats_count_by_stream_and_type(greenroom: Any, journal: Path) -> None:
    outcome = greenroom("journal", "stats")
    assert outcome.code == exit_codes.OK
    assert "30 events in" in outcome.out
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["runner/mlx", "20"] in lines
    assert ["engine_ready", "30"] in lines
    assert json.loads(greenroom("journal", "stats", "--json").out)["streams"] == {
        "runner/mlx": 20,
        "scheduler": 10,
    }


def test_an_export_is_imported_into_an_empty_data_directory(
    greenroom: Any, journal: Path, tmp_path: Path
) -> None:
    file, before = tmp_path / "journal.jsonl", [*read_journal(journal)]
    assert greenroom("journal", "export", str(file)).code == exit_codes.OK
    refused = greenroom("journal", "import", str(file))
    assert refused.code == exit_codes.FAILED
    assert "holds 30 events; import into an empty journal" in refused.err
    other = tmp_path / "other"
    imported = greenroom("--home", str(other), "journal", "import", str(file))
    assert imported.out == f"Imported 30 events into {other}/journal.db.\n"
    assert [*read_journal(other / "journal.db")] == before


def test_an_export_of_a_damaged_journal_leaves_no_file(greenroom: Any, journal: Path, tmp_path: Path) -> None:
    damage(journal, 12)
    file = tmp_path / "journal.jsonl"
    outcome = greenroom("journal", "export", str(file))
    assert outcome.code == exit_codes.JOURNAL
    assert "event 12" in outcome.err
    assert not file.exists()


def test_an_export_can_be_read_from_a_pipe(greenroom_process: Any, journal: Path) -> None:
    done = greenroom_process("journal", "export")
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert json.loads(first)["events"] == len(lines) == 30


def test_a_backup_is_whole_and_never_replaces_a_file(greenroom: Any, journal: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    assert greenroom("journal", "backup", str(copy)).out == f"Copied 30 events to {copy}.\n"
    assert [*read_journal(copy)] == [*read_journal(journal)]
    again = greenroom("journal", "backup", str(copy))
    assert again.code == exit_codes.FAILED
    assert "already exists. Choose a file that does not exist yet." in again.err


def test_set_aside_renames_and_says_what_was_wrong(greenroom: Any, journal: Path) -> None:
    damage(journal, 12)
    outcome = greenroom("journal", "set-aside")
    assert outcome.code == exit_codes.OK
    assert "event 12" in outcome.out
    assert "with 11 good events." in outcome.out
    assert not journal.exists()
    assert len([*journal.parent.glob("journal.2*.db")]) == 1


def test_set_aside_can_keep_the_good_events(greenroom: Any, journal: Path) -> None:
    damage(journal, 12)
    outcome = greenroom("journal", "set-aside", "--keep")
    assert "The new journal starts with 11 events of it." in outcome.out
    assert len([*read_journal(journal)]) == 11


def test_a_journal_in_use_is_not_set_aside(greenroom: Any, journal: Path) -> None:
    writer = SqliteJournal(journal)
    outcome = greenroom("journal", "set-aside")
    writer.close()
    assert outcome.code == exit_codes.ALREADY_RUNNING
    assert str(os.getpid()) in outcome.err
    assert "Stop it first: greenroom stop" in outcome.err


@pytest.mark.parametrize("verb", ["verify", "stats", "export", "set-aside"])
def test_a_missing_journal_is_reported(greenroom: Any, home: Path, verb: str) -> None:
    outcome = greenroom("journal", verb, *([str(home.parent / "out.jsonl")] if verb == "export" else []))
    assert outcome.code == exit_codes.FAILED
    assert "There is no journal at" in outcome.err
    assert [*home.iterdir()] == []


@pytest.mark.parametrize("verb", ["verify", "stats", "export"])
def test_a_file_that_is_not_a_journal_gets_a_sentence(
    greenroom: Any, home: Path, tmp_path: Path, verb: str
) -> None:
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    to = [str(tmp_path / "out.jsonl")] if verb == "export" else []
    outcome = greenroom("journal", verb, *to, "--journal", str(foreign))
    assert outcome.code == exit_codes.JOURNAL
    assert "Traceback" not in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_text_that_is_no_export_is_not_imported(greenroom: Any, home: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("nothing of ours\n")
    outcome = greenroom("journal", "import", str(text))
    assert outcome.code == exit_codes.JOURNAL
    assert "not a journal export" in outcome.err
    assert not (home / "journal.db").exists()
