"""What every store of events must do, as tests: subclass `JournalKit` in a test module of the store.

```python
class TestMyJournal(JournalKit):
    def open(self, folder: Path) -> Journal:
        return MyJournal(folder / "journal")
```

Needs pytest. A store is opened in a folder, and opening it there again after `close` must find what was
stored: a store in memory keeps its past by folder.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from greenroom.actors.journal.port import Entry, Journal, NotWritten, Record


def entry(stream: str, version: int, *, data: str = '{"n":1}', at: float = 1_790_000_000.25) -> Entry:
    """An event to store, with everything filled in."""
    return Entry(
        stream=stream, version=version, type="engine_ready", schema=1, cause="request-1", data=data, at=at
    )


def entries(stream: str, first: int, last: int) -> list[Entry]:
    return [entry(stream, version) for version in range(first, last + 1)]


def ids(records: Iterator[Record] | Sequence[Record]) -> list[str]:
    return [record.id for record in records]


class JournalKit(ABC):
    """What a journal must do. `folder` is empty at first and the test's own."""

    @abstractmethod
    def open(self, folder: Path) -> Journal:
        """Open the store that lives in this folder, making it when there is none."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path

    @pytest.fixture
    def opened(self, folder: Path) -> Iterator[Callable[[], Journal]]:
        """Opens the store; closes every one that was opened when the test is over."""
        journals: list[Journal] = []

        def open_journal() -> Journal:
            journals.append(self.open(folder))
            return journals[-1]

        yield open_journal
        for journal in journals:
            journal.close()

    @pytest.fixture
    def journal(self, opened: Callable[[], Journal]) -> Journal:
        return opened()

    # -- what comes back ----------------------------------------------------------------------------

    def test_a_new_journal_holds_nothing(self, journal: Journal) -> None:
        assert list(journal.read()) == []

    def test_what_was_appended_is_read_back_exactly(self, journal: Journal) -> None:
        written = Entry(
            stream="runner/vllm-metal",
            version=1,
            type="engine_exited",
            schema=3,
            cause="scheduler/17",
            data='{"naïve":"☃ \\u0000 \\ud83d\\ude00","deep":[1,2.50,{"x":null}], "spaced" : true}',
            at=1_790_000_000.123456,
        )
        expected = Record(1, written.at, written.stream, 1, "engine_exited", 3, "scheduler/17", written.data)
        assert journal.append([written]) == [expected]
        assert list(journal.read()) == [expected]

    def test_times_given_as_whole_numbers_come_back_as_seconds(self, journal: Journal) -> None:
        journal.append([entry("a", 1, at=1_790_000_000)])
        assert next(iter(journal.read())).at == 1_790_000_000.0

    def test_numbers_go_up_by_one_over_all_streams(self, journal: Journal) -> None:
        journal.append([entry("a", 1), entry("b", 1)])
        records = journal.append([entry("b", 2)])
        assert [record.seq for record in records] == [3]
        assert [(r.seq, r.id) for r in journal.read()] == [(1, "a/1"), (2, "b/1"), (3, "b/2")]

    def test_reading_goes_on_after_a_number(self, journal: Journal) -> None:
        journal.append(entries("a", 1, 5))
        assert ids(journal.read(after=3)) == ["a/4", "a/5"]
        assert ids(journal.read(after=5)) == []
        assert ids(journal.read(after=99)) == []

    def test_one_stream_can_be_read_alone(self, journal: Journal) -> None:
        for version in range(1, 4):
            journal.append([entry("a", version), entry("ab", version)])
        assert ids(journal.read(stream="a")) == ["a/1", "a/2", "a/3"]
        assert ids(journal.read(stream="ab", after=2)) == ["ab/2", "ab/3"]
        assert ids(journal.read(stream="absent")) == []

    def test_many_records_come_back_in_order(self, journal: Journal) -> None:
        for first in range(1, 3_000, 500):
            journal.append(entries("a", first, first + 499))
        assert [record.seq for record in journal.read()] == list(range(1, 3_001))

    def test_a_long_event_comes_back_whole(self, journal: Journal) -> None:
        data = '{"log":"' + "x" * 1_000_000 + '"}'
        journal.append([entry("a", 1, data=data)])
        assert next(iter(journal.read())).data == data

    def test_an_empty_batch_changes_nothing(self, journal: Journal) -> None:
        assert journal.append([]) == []
        assert list(journal.read()) == []

    def test_reading_while_appending_sees_what_was_there_when_it_began(self, journal: Journal) -> None:
        journal.append(entries("a", 1, 600))
        reading = journal.read()
        assert next(reading).seq == 1
        journal.append(entries("a", 601, 700))
        assert [record.seq for record in reading][:599] == list(range(2, 601))

    # -- what is refused ----------------------------------------------------------------------------

    @pytest.mark.parametrize("version", [1, 2, 4, 5])
    def test_a_version_that_does_not_follow_is_refused(self, journal: Journal, version: int) -> None:
        journal.append(entries("a", 1, 2))
        with pytest.raises(NotWritten, match=f"a/{version}"):
            journal.append([entry("a", version)])
        assert ids(journal.read()) == ["a/1", "a/2"]
        journal.append([entry("a", 3)])

    def test_a_batch_is_stored_whole_or_not_at_all(self, journal: Journal) -> None:
        with pytest.raises(NotWritten):
            journal.append([entry("a", 1), entry("b", 1), entry("b", 3)])
        assert list(journal.read()) == []
        journal.append([entry("a", 1), entry("b", 1), entry("b", 2)])
        assert ids(journal.read()) == ["a/1", "b/1", "b/2"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("stream", ""),
            ("stream", "a\x1fb"),
            ("stream", "a\nb"),
            ("stream", "\ud800"),
            ("stream", "a" * 513),
            ("version", 0),
            ("version", -1),
            ("version", True),
            ("version", 1.0),
            ("version", 2**63),
            ("type", ""),
            ("type", "a\0"),
            ("schema", -1),
            ("schema", "1"),
            ("cause", None),
            ("cause", "a\0"),
            ("at", float("nan")),
            ("at", float("inf")),
            ("at", "now"),
            ("data", ""),
            ("data", "{"),
            ("data", "{} {}"),
            ("data", '{\n"a": 1}'),
            ("data", " {}"),
            ("data", '"\ud800"'),
            ("data", b"{}"),
        ],
    )
    def test_what_could_not_be_read_back_is_refused(
        self, journal: Journal, field: str, value: object
    ) -> None:
        good = {"stream": "a", "version": 1, "type": "t", "schema": 1, "cause": "", "data": "{}", "at": 1.0}
        with pytest.raises(NotWritten, match=field):
            journal.append([Entry(**(good | {field: value}))])  # type: ignore[arg-type]
        journal.append([Entry(**good)])  # type: ignore[arg-type]
        assert ids(journal.read()) == ["a/1"]

    # -- many at once -------------------------------------------------------------------------------

    def test_many_callers_at_once_are_all_stored_in_their_own_order(self, journal: Journal) -> None:
        def append_all(stream: str) -> None:
            for version in range(1, 26):
                (record,) = journal.append([entry(stream, version)])
                if record.id != f"{stream}/{version}":
                    wrong.append(record)

        wrong: list[Record] = []
        self._all_at_once([lambda name=f"s{n}": append_all(name) for n in range(16)])  # type: ignore[misc]
        assert wrong == []
        records = list(journal.read())
        assert [record.seq for record in records] == list(range(1, 16 * 25 + 1))
        for n in range(16):
            assert [r.version for r in records if r.stream == f"s{n}"] == list(range(1, 26))

    def test_of_two_callers_with_one_version_one_is_refused(self, journal: Journal) -> None:
        def try_all() -> None:
            for version in range(1, 51):
                try:
                    journal.append([entry("a", version)])
                except NotWritten:
                    refused.append(version)

        refused: list[int] = []
        self._all_at_once([try_all, try_all])
        assert ids(journal.read()) == [f"a/{version}" for version in range(1, 51)]
        assert len(refused) == 50

    def test_a_refused_batch_does_not_harm_others_that_are_stored_with_it(self, journal: Journal) -> None:
        def append_good(stream: str) -> None:
            for version in range(1, 26):
                journal.append([entry(stream, version)])

        def append_bad() -> None:
            for _ in range(25):
                with pytest.raises(NotWritten):
                    journal.append([entry("bad", 2)])
                refused.append(1)

        refused: list[int] = []
        work: list[Callable[[], None]] = [lambda name=f"s{n}": append_good(name) for n in range(6)]  # type: ignore[misc]
        self._all_at_once([*work, append_bad])
        assert len(refused) == 25
        assert len(list(journal.read())) == 6 * 25

    # -- the end ------------------------------------------------------------------------------------

    def test_what_was_stored_is_there_after_opening_again(self, opened: Callable[[], Journal]) -> None:
        journal = opened()
        journal.append(entries("a", 1, 3))
        before = list(journal.read())
        journal.close()
        again = opened()
        assert list(again.read()) == before
        with pytest.raises(NotWritten):
            again.append([entry("a", 3)])
        assert [record.seq for record in again.append([entry("a", 4)])] == [4]

    def test_closing_twice_is_no_harm(self, journal: Journal) -> None:
        journal.close()
        journal.close()

    def test_appending_to_a_closed_journal_is_refused(self, journal: Journal) -> None:
        journal.close()
        with pytest.raises(NotWritten, match="closed"):
            journal.append([entry("a", 1)])

    def test_closing_while_others_append_loses_nothing_that_was_acknowledged(
        self, opened: Callable[[], Journal]
    ) -> None:
        journal = opened()
        acknowledged: list[str] = []
        running = threading.Barrier(5)

        def append_until_closed(stream: str) -> None:
            running.wait()
            version = 0
            while True:
                version += 1
                try:
                    acknowledged.extend(ids(journal.append([entry(stream, version)])))
                except NotWritten:
                    return

        threads = [threading.Thread(target=append_until_closed, args=(f"s{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        running.wait()
        journal.close()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert sorted(ids(opened().read())) == sorted(acknowledged)

    @staticmethod
    def _all_at_once(calls: Sequence[Callable[[], None]]) -> None:
        errors: list[BaseException] = []
        start = threading.Barrier(len(calls))

        def run(call: Callable[[], None]) -> None:
            start.wait()
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - shown by the assertion below
                errors.append(error)

        threads = [threading.Thread(target=run, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
        assert not any(thread.is_alive() for thread in threads)
