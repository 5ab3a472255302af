"""What is stored beside the rows: an index without checksums, and other programs' tables."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest

from greenroom.actors.journal.conformance import entries, entry, ids
from greenroom.actors.journal.maintenance import set_aside, verify
from greenroom.actors.journal.port import JournalDamaged
from greenroom.actors.journal.sqlite import SqliteJournal


@pytest.fixture
def path(folder: Path) -> Path:
    """A journal of a few hundred events in three streams, closed in order."""
    path = folder / "journal.db"
    journal = SqliteJournal(path)
    for stream in ("runner/mlx", "scheduler", "library"):
        journal.append(entries(stream, 1, 150))
    journal.close()
    return path


def index_pages(path: Path) -> list[int]:
    """Offsets of the index's leaf pages: those hold cells with the names of streams, and no JSON."""
    data, size = path.read_bytes(), 4096
    pages = [data[at : at + size] for at in range(0, len(data), size)]
    return [n * size for n, page in enumerate(pages) if page[0] == 0x0A and b"scheduler" in page]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x01
    path.write_bytes(data)


@pytest.mark.parametrize("where", ["name", "last byte", "count of cells"])
def test_a_damaged_index_is_rebuilt_and_no_event_is_lost(
    path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    page = index_pages(path)[0]
    data = path.read_bytes()
    match where:
        case "name":
            flip(path, data.index(b"scheduler", page))
        case "last byte":
            flip(path, page + 4095)
        case _:
            flip(path, page + 4)
    assert verify(path).problems
    with caplog.at_level(logging.WARNING):
        journal = SqliteJournal(path, lazy=True)
        assert len(ids(journal.read())) == 450
        journal.append([entry("scheduler", 151)])
    assert "index is damaged and is rebuilt" in caplog.text
    assert ids(journal.read(stream="scheduler"))[-1] == "scheduler/151"
    journal.close()
    assert verify(path).problems == ()


def test_an_index_that_cannot_be_rebuilt_refuses_the_start_and_no_event_is_lost(path: Path) -> None:
    page, data = index_pages(path)[0], path.read_bytes()
    path.write_bytes(data[:page] + bytes(4096) + data[page + 4096 :])
    with pytest.raises(JournalDamaged):
        SqliteJournal(path)
    assert set_aside(path, keep=True).kept == 450
    journal = SqliteJournal(path)
    assert len(ids(journal.read())) == 450
    journal.close()


def test_a_whole_index_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        journal = SqliteJournal(path)
        journal.append([entry("new", 1)])
        journal.close()
        SqliteJournal(path).close()
    assert caplog.text == ""


def test_a_trigger_that_is_not_ours_is_noticed_and_refused_and_can_be_removed(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TRIGGER sly AFTER INSERT ON events BEGIN DELETE FROM events WHERE seq = 1; END")
    other.close()
    (problem,) = verify(path).problems
    assert "triggers that Greenroom did not make (sly)" in problem
    with pytest.raises(JournalDamaged, match="DROP TRIGGER"):
        SqliteJournal(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("DROP TRIGGER sly")
    other.close()
    journal = SqliteJournal(path)
    assert len(ids(journal.read())) == 450
    journal.close()


def test_setting_a_journal_with_a_trigger_aside_keeps_every_event(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TRIGGER sly AFTER INSERT ON events BEGIN DELETE FROM events WHERE seq = 1; END")
    other.close()
    assert set_aside(path, keep=True).kept == 450
    journal = SqliteJournal(path)
    journal.append([entry("new", 1)])
    assert len(ids(journal.read())) == 451
    journal.close()
