"""Journals on the disk are read as decoded events, without a daemon and without touching the file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors import Codec, Entry, Event, JournalDamaged, NotAJournal, SqliteJournal, read_journal
from greenroom.actors.daemon_log import DaemonStarted
from greenroom.actors.engine_runner.events import EngineReady
from greenroom.actors.library.events import PullRequested
from greenroom.runner import event_codec, read_events
from greenroom.runner.diagnosis.sentences import TOLD

AT = 1.79e9


class Spent(Event, frozen=True, kw_only=True):
    TAG = "allowance_spent"
    tokens: int


def entry(stream: str, version: int, kind: str, data: str, *, schema: int = 1, at: float = AT) -> Entry:
    return Entry(stream=stream, version=version, type=kind, schema=schema, cause="r-1", data=data, at=at)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(tmp_path / "journal.db")
    journal.append(
        [
            entry("daemon", 1, "daemon_started", '{"pid":7,"version":"1.0","platform":"Linux"}'),
            entry("library", 1, "pull_requested", '{"job":"pull.1","reference":"docker.io/ai/tiny:latest"}'),
            entry("runner/fake", 1, "engine_ready", '{"engine_id":"e1"}', at=AT + 1),
            entry("allowance", 1, "allowance_spent", '{"tokens":3}', at=AT + 2),
            entry("runner/fake", 2, "engine_ready", '{"engine_id":"e1"}', schema=99, at=AT + 3),
            entry("runner/fake", 3, "engine_ready", '{"engine_id":["not","text"]}', at=AT + 4),
        ]
    )
    yield journal
    journal.close()


def test_events_are_decoded_with_their_sentences(journal: SqliteJournal) -> None:
    found = list(read_events(journal.files.db))
    assert [type(one.event) for one in found[:3]] == [DaemonStarted, PullRequested, EngineReady]
    third = found[2]
    assert (third.seq, third.id, third.stream, third.version) == (3, "runner/fake/1", "runner/fake", 1)
    assert (third.at, third.cause, third.data) == (AT + 1, "r-1", {"engine_id": "e1"})
    assert str(third) == third.text == "Engine e1 is ready."
    # Of another program, of a newer version, and one whose class has changed: told, and not decoded.
    assert [one.event for one in found[3:]] == [None, None, None]
    assert (found[3].type, found[3].data) == ("allowance_spent", {"tokens": 3})
    assert (found[4].schema, found[5].data) == (99, {"engine_id": ["not", "text"]})


def test_a_program_has_its_own_types_decoded(journal: SqliteJournal) -> None:
    (spent,) = read_events(journal.files.db, types=[Spent])
    assert spent.event == Spent(tokens=3)
    assert [one.id for one in read_events(journal.files.db, types=["pull_*", Spent])] == [
        "library/1",
        "allowance/1",
    ]
    codec: Codec = event_codec(Spent)
    decoded = [codec.decode(one) for one in read_journal(journal.files.db) if one.seq < 5]
    assert [type(one.event) for one in decoded if one is not None] == [
        DaemonStarted,
        PullRequested,
        EngineReady,
        Spent,
    ]

    class Copied(Event, frozen=True, kw_only=True):
        TAG = EngineReady.TAG

    with pytest.raises(ValueError, match="two event types have the tag 'engine_ready'"):
        read_events(journal.files.db, types=[Copied])


@pytest.mark.parametrize(
    ("since", "first"),
    [
        (0, 1),
        (2, 3),
        (6, 7),
        ("library/1", 3),
        (AT, 3),
        (AT + 0.5, 3),
        (datetime.fromtimestamp(AT + 1, UTC), 4),
        ("2001-01-01", 1),
        (0.0, 1),
        ("now", 7),
    ],
)
def test_where_to_begin(journal: SqliteJournal, since: Any, first: int) -> None:
    assert [one.seq for one in read_events(journal.files.db, since=since)] == [*range(first, 7)]


def test_what_is_not_there_is_an_error(journal: SqliteJournal, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"There is no event 7: the last event in .* is 6"):
        next(read_events(journal.files.db, since=7))
    with pytest.raises(LookupError, match="There is no event library/9"):
        next(read_events(journal.files.db, since="library/9"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no journal at .*empty/journal.db"):
        next(read_events(tmp_path / "empty"))
    (tmp_path / "text").write_text("This is a text, and by no means a journal of any kind." * 20)
    with pytest.raises(NotAJournal):
        next(read_events(tmp_path / "text"))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"types": ()}, ValueError),
        ({"types": "engine_ready"}, TypeError),
        ({"types": EngineReady}, TypeError),
        ({"types": [Event]}, TypeError),
        ({"types": [int]}, TypeError),
        ({"types": [3]}, TypeError),
        ({"types": ["a,b"]}, ValueError),
        ({"since": True}, TypeError),
        ({"since": None}, TypeError),
        ({"since": -1}, ValueError),
        ({"since": int(time.time())}, ValueError),
        ({"since": float("nan")}, ValueError),
        ({"since": "soon"}, ValueError),
        ({"path": ""}, ValueError),
    ],
)
def test_wrong_arguments_are_errors_at_once(tmp_path: Path, wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_events(**{"path": tmp_path / "absent.db", **wrong})


def test_a_folder_and_copies_are_read_and_left_as_they_are(journal: SqliteJournal, tmp_path: Path) -> None:
    assert len(list(read_events(tmp_path))) == 6
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in tmp_path.glob("journal.db*"):
        shutil.copy(path, copied)
    journal.append([entry("allowance", 2, "allowance_spent", '{"tokens":4}')])
    before = {path.name: path.read_bytes() for path in copied.iterdir() if not path.name.endswith("-shm")}
    copied.chmod(0o500)
    try:
        assert len(list(read_events(str(copied)))) == 6
    finally:
        copied.chmod(0o700)
    assert before == {path.name: path.read_bytes() for path in copied.iterdir() if path.name in before}
    assert len(list(read_events(tmp_path))) == 7


def test_what_is_whole_comes_before_the_damage(journal: SqliteJournal, tmp_path: Path) -> None:
    journal.close()
    content = journal.files.db.read_bytes()
    assert content.count(b'{"tokens":3}') == 1
    journal.files.db.write_bytes(content.replace(b'{"tokens":3}', b'{"tokens":9}'))
    events = read_events(tmp_path)
    assert [next(events).seq for _ in range(3)] == [1, 2, 3]
    with pytest.raises(JournalDamaged) as damage:
        next(events)
    assert damage.value.seq == 4


def test_every_event_that_has_a_sentence_is_known_to_the_codec() -> None:
    assert event_codec().types.keys() == TOLD
