"""A journal that is checked while it is replayed: until that ends, nothing is written and no actor acts."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.journal.conformance import entries, entry, ids
from greenroom.actors.journal.port import JournalDamaged, NotWritten
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.journal.writer_lock import WriterLock
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Address, Command, Decision, Event, SingleStream, Stored
from greenroom.actors.kernel.system import ActorSystem

COUNT = 600
"""More than is read at a time."""


class Ticked(Event, frozen=True, kw_only=True):
    TAG = "engine_ready"
    """As the kit's entries have it."""
    n: int = 1


class Ticker(SingleStream[int]):
    """Counts, and notes every command it has to decide on: the first one comes with its first look."""

    address = Address("ticker")
    event_types = (Ticked,)

    def __init__(self) -> None:
        self.decided: list[Command[Any]] = []

    def initial(self) -> int:
        return 0

    def apply(self, state: int, stored: Stored[Any]) -> int:
        return state + 1

    def decide(self, state: int, command: Command[Any], now: Moment, volatile: None) -> Decision[None]:
        self.decided.append(command)
        return Decision(events=(Ticked(),))


@pytest.fixture
def path(folder: Path) -> Path:
    path = folder / "journal.db"
    journal = SqliteJournal(path)
    journal.append(entries("ticker", 1, COUNT))
    journal.close()
    return path


def contents(path: Path) -> dict[str, bytes]:
    """Of all files but the lock, which says who has it, SQLite's index, and the empty log readers leave."""
    files = {one.name: one.read_bytes() for one in path.parent.iterdir()}
    return {name: text for name, text in files.items() if text and not name.endswith(("-shm", "lock"))}


def spoil(path: Path, seq: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE events SET cause = 'intruder' WHERE seq = ?", (seq,))
    connection.commit()
    connection.close()


def test_nothing_is_written_before_all_has_been_read(path: Path) -> None:
    before = contents(path)
    journal = SqliteJournal(path, lazy=True)
    records = journal.read()
    for _ in range(COUNT):
        next(records)
    now = contents(path)
    assert {name: now[name] for name in before} == before
    assert next(records, None) is None
    assert contents(path) != before, "the repair was not written"
    assert ids(journal.append([entry("ticker", COUNT + 1)])) == [f"ticker/{COUNT + 1}"]
    journal.close()


def test_a_reading_that_is_given_up_half_way_does_not_count(path: Path) -> None:
    journal = SqliteJournal(path, lazy=True)
    next(journal.read())
    with pytest.raises(NotWritten, match=f"last version is {COUNT}"):
        journal.append([entry("ticker", 2)])
    assert len(list(journal.read(stream="ticker"))) == COUNT
    journal.close()


def test_an_append_before_any_reading_checks_first(path: Path) -> None:
    spoil(path, COUNT)
    before = contents(path)
    journal = SqliteJournal(path, lazy=True)
    with pytest.raises(JournalDamaged) as damage:
        journal.append([entry("other", 1)])
    assert damage.value.seq == COUNT
    journal.close()
    assert contents(path) == before


def test_a_journal_closed_unread_is_unchanged_and_free_for_others(path: Path) -> None:
    before = contents(path)
    journal = SqliteJournal(path, lazy=True)
    journal.close()
    journal.close()
    with pytest.raises(NotWritten, match="closed"):
        journal.append([entry("ticker", COUNT + 1)])
    assert contents(path) == before
    WriterLock(journal.files.lock).release()


@pytest.mark.parametrize("seq", [1, 300, COUNT])
def test_damage_anywhere_refuses_the_start_before_any_actor_acts(path: Path, seq: int) -> None:
    spoil(path, seq)
    before = contents(path)
    ticker = Ticker()
    system = ActorSystem(SqliteJournal(path, lazy=True))
    system.register(ticker)
    with pytest.raises(JournalDamaged) as damage:
        system.start()
    assert damage.value.seq == seq
    assert ticker.decided == []
    assert contents(path) == before
    WriterLock(system.journal.files.lock).release()  # type: ignore[attr-defined]


def test_a_missing_end_refuses_the_start_before_any_actor_acts(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.append(entries("more", 1, 2))
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM events WHERE seq > ?", (COUNT,))
    connection.commit()
    connection.close()
    journal.close()
    ticker = Ticker()
    system = ActorSystem(SqliteJournal(path, lazy=True))
    system.register(ticker)
    with pytest.raises(JournalDamaged, match="2 are missing"):
        system.start()
    assert ticker.decided == []


def test_an_undamaged_journal_starts_and_continues(path: Path) -> None:
    ticker = Ticker()
    system = ActorSystem(SqliteJournal(path, lazy=True))
    system.register(ticker)
    with system:
        assert system.state("ticker") == COUNT + 1
        assert len(ticker.decided) == 1
    assert len(list(SqliteJournal(path).read())) == COUNT + 1
