"""Every store passes the same suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenroom.actors.journal.conformance import JournalKit, entries, entry, ids
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import Entry, Journal, JournalFailed, NotWritten
from greenroom.actors.journal.sqlite import SqliteJournal


class TestSqliteJournal(JournalKit):
    def open(self, folder: Path) -> Journal:
        return SqliteJournal(folder / "journal.db")


class TestLazySqliteJournal(JournalKit):
    """Checked with the first reading, or with the first append, whichever comes first."""

    def open(self, folder: Path) -> Journal:
        return SqliteJournal(folder / "journal.db", lazy=True)


class TestMemoryJournal(JournalKit):
    @pytest.fixture(autouse=True)
    def _remember(self) -> None:
        self.journals: dict[Path, MemoryJournal] = {}

    def open(self, folder: Path) -> Journal:
        past = self.journals[folder].records if folder in self.journals else ()
        self.journals[folder] = MemoryJournal(past)
        return self.journals[folder]


def test_a_refusal_before_storing_leaves_a_memory_journal_as_it_was() -> None:
    def refuse(batch: tuple[Entry, ...]) -> None:
        if batch[0].version == 2:
            raise NotWritten("no")

    journal = MemoryJournal(before_append=refuse)
    journal.append([entry("a", 1)])
    with pytest.raises(NotWritten):
        journal.append([entry("a", 2)])
    journal.append([entry("b", 1)])
    assert ids(journal.records) == ["a/1", "b/1"]


def test_an_unknown_outcome_ends_a_memory_journal_whether_or_not_the_batch_is_stored() -> None:
    def fail(batch: tuple[Entry, ...]) -> None:
        raise JournalFailed("the disk is on fire")

    journal = MemoryJournal(after_append=fail)
    with pytest.raises(JournalFailed):
        journal.append(entries("a", 1, 2))
    with pytest.raises(JournalFailed, match="fire"):
        journal.append([entry("a", 3)])
    assert ids(MemoryJournal(journal.records).records) == ["a/1", "a/2"]
