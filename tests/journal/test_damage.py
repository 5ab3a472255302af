"""Damaged, cut and missing files: all of the history, or its beginning and where it ends; nothing else."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.actors.journal.conformance import entry
from greenroom.actors.journal.port import (
    JournalDamaged,
    JournalError,
    JournalFailed,
    JournalTooNew,
    NotAJournal,
    NotWritten,
    Record,
)
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.sqlite import SqliteJournal

FILES = ("journal.db", "journal.db-wal", "journal.db-shm", "journal.db-tail")


class Spoiled:
    """A copy of what a killed writer left, to be spoiled."""

    def __init__(self, folder: Path, history: tuple[Record, ...]) -> None:
        self.folder = folder
        self.history = history
        self.db = folder / "journal.db"

    def read(self) -> tuple[list[Record], JournalError | None]:
        """What a reader gets, and how it ended."""
        got: list[Record] = []
        try:
            with JournalReader(self.db) as reader:
                got.extend(reader.read())
        except (JournalDamaged, NotAJournal, JournalTooNew) as error:
            return got, error
        return got, None

    def contents(self) -> dict[str, bytes]:
        """What is on disk, but for SQLite's index, which is rebuilt."""
        return {name: (self.folder / name).read_bytes() for name in FILES if not name.endswith("-shm")}

    def assert_true_or_refused(self, what: str) -> None:
        """What the reader, and then the writer, must guarantee."""
        before = self.contents()
        got, error = self.read()
        self._assert_beginning(got, error, what)
        journal = None
        replayed: list[Record] = []
        try:
            # As the daemon opens it: checked while it is replayed.
            journal = SqliteJournal(self.db, lazy=True)
            replayed.extend(journal.read())
        except (JournalDamaged, NotAJournal, JournalTooNew):
            if journal is not None:
                journal.close()
            assert self.contents() == before, f"{what}: refused, and yet changed"
            assert replayed == got, f"{what}: the writer has read another history"
            return
        assert error is None, f"{what}: the reader refused with {error}, the writer did not"
        assert tuple(replayed) == tuple(journal.read()) == self.history, what
        more = 0
        with contextlib.suppress(NotWritten, JournalFailed):
            more = len(journal.append([entry("after", 1), entry("after", 2)]))
        journal.close()
        got, error = self.read()
        # The damage may lie where only writing goes, such as in the index of streams.
        self._assert_beginning(got[: len(self.history)], error, what)
        assert [record.id for record in got[len(self.history) :]] in ([], ["after/1", "after/2"]), what
        assert error is not None or len(got) == len(self.history) + more, what

    def _assert_beginning(self, got: list[Record], error: JournalError | None, what: str) -> None:
        assert tuple(got) == self.history[: len(got)], f"{what}: another history"
        if error is None:
            assert len(got) == len(self.history), f"{what}: {len(got)} events and not a word"
        elif isinstance(error, JournalDamaged):
            assert error.seq == len(got) + 1, f"{what}: {error}"
            assert str(error).strip()


@pytest.fixture
def spoil(left_behind: tuple[Path, tuple[Record, ...]], folder: Path) -> Iterator[Spoiled]:
    """Copies of the journal, one after the other."""
    source, history = left_behind

    def copies() -> Iterator[Spoiled]:
        while True:
            copy = folder / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy)
            yield Spoiled(copy, history)

    return copies()


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)


def flip_bits(spoil: Iterator[Spoiled], name: str, bits: Iterator[int] | list[int]) -> None:
    for bit in bits:
        copy = next(spoil)
        flip(copy.folder / name, bit)
        copy.assert_true_or_refused(f"bit {bit % 8} of byte {bit // 8} of {name}")


def test_half_of_the_copied_history_is_only_in_the_log(spoil: Iterator[Spoiled]) -> None:
    copy = next(spoil)
    (copy.folder / "journal.db-wal").unlink()
    (copy.folder / "journal.db-tail").unlink()
    assert len(copy.read()[0]) == len(copy.history) / 2


def test_an_undamaged_copy_is_read_and_written_to(spoil: Iterator[Spoiled]) -> None:
    copy = next(spoil)
    assert copy.read() == (list(copy.history), None)
    copy.assert_true_or_refused("unspoiled")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_gives_the_whole_history_or_a_refusal_with_the_number(
    spoil: Iterator[Spoiled], name: str
) -> None:
    size = (next(spoil).folder / name).stat().st_size
    chance = random.Random(f"bits of {name}")
    flip_bits(spoil, name, [chance.randrange(size * 8) for _ in range(60)])


def test_a_flipped_bit_in_the_header_of_the_database_is_detected_or_harmless(
    spoil: Iterator[Spoiled],
) -> None:
    flip_bits(spoil, "journal.db", [byte * 8 + byte % 8 for byte in range(100)])


def test_a_flipped_bit_in_the_header_of_the_log_is_detected_or_harmless(spoil: Iterator[Spoiled]) -> None:
    flip_bits(spoil, "journal.db-wal", [byte * 8 + byte % 8 for byte in range(56)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_every_byte_of_any_file_is_detected_or_harmless(
    spoil: Iterator[Spoiled], name: str
) -> None:
    size = (next(spoil).folder / name).stat().st_size
    chance = random.Random(f"bytes of {name}")
    step = max(1, size // 5_000)
    flip_bits(spoil, name, [byte * 8 + chance.randrange(8) for byte in range(0, size, step)])


def flipped(value: object, bit: int) -> object:
    """The value of a column with one bit changed: a low one, so that it stays a value of its type."""
    if isinstance(value, int):
        return value ^ 1 << bit
    if isinstance(value, float):
        (number,) = struct.unpack("<q", struct.pack("<d", value))
        return struct.unpack("<d", struct.pack("<q", number ^ 1 << bit))[0]
    assert isinstance(value, str)
    text = value or "a"
    place = len(text) // 2
    return f"{text[:place]}{chr(ord(text[place]) ^ 1 << bit % 3)}{text[place + 1 :]}"


@pytest.mark.parametrize(
    "column", ["seq", "at", "stream", "version", "type", "schema", "cause", "data", "crc"]
)
def test_a_row_with_a_flipped_bit_in_a_column_is_refused_with_its_number(
    spoil: Iterator[Spoiled], column: str
) -> None:
    spoiled = 0
    for seq in (1, 7, len(next(spoil).history)):
        for bit in (0, 5, 20):
            copy = next(spoil)
            connection = sqlite3.connect(copy.db)
            try:
                found = connection.execute(f"SELECT {column} FROM events WHERE seq = ?", (seq,))
                old = found.fetchone()[0]
                new = flipped(old, 40 if column == "seq" else bit)
                with contextlib.suppress(sqlite3.IntegrityError):
                    connection.execute(f"UPDATE events SET {column} = ? WHERE seq = ?", (new, seq))
                    connection.commit()
                    assert new != old
            finally:
                changed = connection.total_changes
                connection.close()
            got, error = copy.read()
            if not changed:
                assert error is None
                continue
            spoiled += 1
            assert isinstance(error, JournalDamaged), f"{column} of {seq}, bit {bit}: not a word"
            assert error.seq == seq, f"{column}, bit {bit}"
            assert tuple(got) == copy.history[: seq - 1]
            with pytest.raises(JournalDamaged):
                SqliteJournal(copy.db)
    assert spoiled


def test_a_log_cut_off_at_any_offset_is_noticed(spoil: Iterator[Spoiled]) -> None:
    _cut_at(spoil, _some_offsets(spoil))


def test_a_log_cut_off_at_any_offset_is_an_exact_beginning_without_a_tail(spoil: Iterator[Spoiled]) -> None:
    lengths = set()
    for offset in _some_offsets(spoil):
        copy = next(spoil)
        (copy.folder / "journal.db-tail").unlink()
        cut(copy.folder / "journal.db-wal", offset)
        got, error = copy.read()
        assert tuple(got) == copy.history[: len(got)]
        assert len(got) % 6 == 0, "half a batch"
        assert (error is None) == (offset > 32), "a database without its log, and not a word"
        lengths.add(len(got))
    assert len(lengths) > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_log_cut_off_at_every_offset_of_every_frame_is_noticed(spoil: Iterator[Spoiled]) -> None:
    size = (next(spoil).folder / "journal.db-wal").stat().st_size
    _cut_at(spoil, list(range(0, size, 97)))


def _some_offsets(spoil: Iterator[Spoiled]) -> list[int]:
    size = (next(spoil).folder / "journal.db-wal").stat().st_size
    chance = random.Random("offsets")
    return [0, 1, 31, 32, 33, 56, *(chance.randrange(size) for _ in range(40)), size - 1]


def _cut_at(spoil: Iterator[Spoiled], offsets: list[int]) -> None:
    for offset in offsets:
        copy = next(spoil)
        cut(copy.folder / "journal.db-wal", offset)
        got, error = copy.read()
        assert isinstance(error, JournalDamaged), f"cut at {offset}: {len(got)} events and not a word"
        copy.assert_true_or_refused(f"the log cut at {offset}")


def test_a_database_without_its_log_is_noticed_by_how_far_the_tail_says_it_goes(
    spoil: Iterator[Spoiled],
) -> None:
    copy = next(spoil)
    (copy.folder / "journal.db-wal").unlink()
    with pytest.raises(JournalDamaged, match=r"ends at event 120, but 240 were written.*wal.*gone") as caught:
        SqliteJournal(copy.db)
    assert caught.value.seq == 121


def test_a_database_copied_alone_while_it_was_in_use_is_noticed(spoil: Iterator[Spoiled]) -> None:
    copy = next(spoil)
    for name in FILES[1:]:
        (copy.folder / name).unlink()
    got, error = copy.read()
    assert len(got) == 120
    assert isinstance(error, JournalDamaged)
    assert "was in use when it was copied" in str(error)
    with pytest.raises(JournalDamaged, match="was in use when it was copied"):
        SqliteJournal(copy.db)


def test_a_database_copied_alone_after_it_was_closed_is_whole(
    spoil: Iterator[Spoiled], tmp_path: Path
) -> None:
    copy = next(spoil)
    SqliteJournal(copy.db).close()
    alone = tmp_path / "elsewhere.db"
    shutil.copy(copy.db, alone)
    with JournalReader(alone) as reader:
        assert tuple(reader.read()) == copy.history
        assert reader.notices == ()
    journal = SqliteJournal(alone)
    assert journal.notices == ()
    journal.close()


def test_a_log_that_was_brought_in_by_another_program_is_not_missed(spoil: Iterator[Spoiled]) -> None:
    copy = next(spoil)
    connection = sqlite3.connect(copy.db)
    connection.execute("SELECT count(*) FROM events").fetchall()
    connection.close()
    assert not (copy.folder / "journal.db-wal").exists()
    journal = SqliteJournal(copy.db)
    assert tuple(journal.read()) == copy.history
    assert "was not closed in order" in journal.notices[0]
    journal.close()


def test_without_its_tail_the_journal_is_read_and_gets_a_new_one(spoil: Iterator[Spoiled]) -> None:
    copy = next(spoil)
    (copy.folder / "journal.db-tail").unlink()
    SqliteJournal(copy.db).close()
    assert (copy.folder / "journal.db-tail").exists()


def test_the_tail_of_another_journal_is_not_considered(spoil: Iterator[Spoiled], tmp_path: Path) -> None:
    copy = next(spoil)
    shutil.copy(copy.folder / "journal.db-tail", tmp_path / "new.db-tail")
    SqliteJournal(tmp_path / "other.db").close()
    shutil.copy(tmp_path / "other.db", tmp_path / "new.db")
    journal = SqliteJournal(tmp_path / "new.db")
    assert "another journal" in journal.notices[0]
    assert list(journal.read()) == []
    journal.close()


def test_an_older_copy_that_was_restored_is_detected(spoil: Iterator[Spoiled]) -> None:
    copy = next(spoil)
    SqliteJournal(copy.db).close()
    older = copy.db.read_bytes()
    journal = SqliteJournal(copy.db)
    journal.append([entry("later", 1)])
    journal.close()
    copy.db.write_bytes(older)
    with pytest.raises(JournalDamaged, match=r"restored an older copy on purpose, remove journal\.db-tail"):
        SqliteJournal(copy.db)
    (copy.folder / "journal.db-tail").unlink()
    journal = SqliteJournal(copy.db)
    assert tuple(journal.read()) == copy.history
    journal.close()


def test_a_journal_whose_database_was_deleted_starts_over_and_says_so(spoil: Iterator[Spoiled]) -> None:
    copy = next(spoil)
    log = (copy.folder / "journal.db-wal").read_bytes()
    copy.db.unlink()
    journal = SqliteJournal(copy.db, clock=lambda: 0.0)
    assert list(journal.read()) == []
    assert any("held 240 events, is gone" in notice for notice in journal.notices)
    assert any("19700101T000000Z" in notice for notice in journal.notices)
    journal.append([entry("a", 1)])
    journal.close()
    assert (copy.folder / "journal.19700101T000000Z.db-wal").read_bytes() == log


def test_a_database_cut_to_nothing_is_refused(spoil: Iterator[Spoiled]) -> None:
    copy = next(spoil)
    cut(copy.db, 0)
    with pytest.raises(JournalDamaged, match="is empty, but it held 240 events") as caught:
        SqliteJournal(copy.db)
    assert caught.value.seq == 1
    assert copy.db.stat().st_size == 0
    assert (copy.folder / "journal.db-wal").stat().st_size > 0


@pytest.mark.parametrize("pages", [1, 2, 5, 9])
def test_a_database_cut_short_is_an_exact_beginning_and_a_refusal(
    spoil: Iterator[Spoiled], pages: int
) -> None:
    copy = next(spoil)
    cut(copy.db, pages * 4096)
    copy.assert_true_or_refused(f"cut to {pages} pages")


@pytest.mark.parametrize("name", ["journal.db", "journal.db-wal"])
def test_a_file_removed_under_the_writer_ends_the_journal(folder: Path, name: str) -> None:
    journal = SqliteJournal(folder / "journal.db")
    journal.append([entry("a", 1)])
    (folder / name).unlink()
    with pytest.raises(JournalFailed, match="removed or replaced"):
        journal.append([entry("a", 2)])
    with pytest.raises(JournalFailed, match="removed or replaced"):
        journal.append([entry("a", 2)])
    journal.close()
