"""A real daemon refuses a journal it cannot use: a sentence, the documented exit code, nothing changed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom.actors.journal import schema
from greenroom.actors.journal.conformance import entry
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.runner import exit_codes


@pytest.fixture
def serve(greenroom_process: Any, home: Path) -> Any:
    """`greenroom serve`, which must end by itself."""
    return lambda: greenroom_process("serve", "--port", "0")


@contextlib.contextmanager
def unchanged(journal: Path) -> Iterator[None]:
    before = journal.read_bytes()
    yield
    assert journal.read_bytes() == before


def refused(outcome: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert outcome.returncode == code, outcome.stderr
    assert "Traceback" not in outcome.stderr
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    for word in words:
        assert word in last


def write(home: Path, **changes: Any) -> Path:
    """A journal with one event, such as this Greenroom could have written but for the changes."""
    path = home / "journal.db"
    journal = SqliteJournal(path)
    fields = {"stream": "runner/mlx", "type": "engine_ready", "data": '{"engine_id":"e1"}', "schema": 1}
    journal.append([msgspec.structs.replace(entry("any", 1), **(fields | changes))])
    journal.close()
    return path


def test_a_newer_log_format_is_refused(serve: Any, home: Path) -> None:
    path = write(home)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.FORMAT + 1}")
    with unchanged(path):
        refused(serve(), exit_codes.JOURNAL, "newer Greenroom")


def test_an_event_of_a_newer_version_is_refused(serve: Any, home: Path) -> None:
    path = write(home, type="engine_teleported")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        events = connection.execute("SELECT * FROM events").fetchall()
    refused(serve(), exit_codes.JOURNAL, "engine_teleported", "newer version", "set-aside")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM events").fetchall() == events


def test_a_newer_schema_of_an_event_is_refused(serve: Any, home: Path) -> None:
    write(home, schema=99)
    refused(serve(), exit_codes.JOURNAL, "engine_ready", "schema 99")


def test_a_damaged_journal_is_refused_with_the_command_that_helps(serve: Any, home: Path) -> None:
    path = write(home)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE events SET data = '{}'")
        connection.commit()
    with unchanged(path):
        refused(serve(), exit_codes.JOURNAL, "event 1", "greenroom journal set-aside")


def test_a_second_writer_is_refused_and_the_first_is_named(serve: Any, home: Path) -> None:
    journal = SqliteJournal(home / "journal.db")
    refused(serve(), exit_codes.ALREADY_RUNNING, str(os.getpid()))
    # The first one has lost nothing by it.
    journal.append([entry("a", 1)])
    assert len([*journal.read()]) == 1
    journal.close()
