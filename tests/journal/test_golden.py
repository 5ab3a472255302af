"""Journals of every version stay readable, and the stored format does not change silently.

When one of these fails, `tests/shared/golden.py` says what to do.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from golden import DIGESTS, GOLDEN, SCHEMA, differences, digest, event_types, every_type, shapes, whole
from greenroom.actors.daemon_log import DAEMON
from greenroom.actors.engine_runner.core import RunnerState
from greenroom.actors.engine_runner.messages import runner_address
from greenroom.actors.installer.messages import INSTALLER
from greenroom.actors.installer.state import InstallerState
from greenroom.actors.journal import maintenance
from greenroom.actors.journal.port import JournalTooNew, Record
from greenroom.actors.journal.reader import read_journal
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.core import Event
from greenroom.actors.kernel.event_store import Codec
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.actors.library.messages import LIBRARY
from greenroom.actors.library.state import LibraryState
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.actors.scheduler.state import SchedulerState
from greenroom.runner.diagnosis.replay import replay

JOURNALS = sorted(GOLDEN.glob("*.db"))
LIVES = [path for path in JOURNALS if path.stem.endswith("-life")]
name: dict[str, Any] = {"ids": lambda path: path.name}


@pytest.fixture
def copied(tmp_path: Path) -> Any:
    """Copies a golden journal to where something may be written beside it: SQLite does even in reading."""

    def copy(path: Path) -> Path:
        (tmp_path / path.stem).mkdir(exist_ok=True)
        return Path(shutil.copy(path, tmp_path / path.stem / "journal.db"))

    return copy


# journals


def test_no_golden_journal_has_changed() -> None:
    listed = {name: sum_ for sum_, name in (line.split("  ") for line in DIGESTS.read_text().splitlines())}
    there = {path.name: digest(path) for path in GOLDEN.glob("*") if path.suffix in (".db", ".jsonl")}
    assert there == listed, (
        "golden journals never change: put the old files back, record new ones beside them"
    )


def test_golden_journals_exist() -> None:
    assert LIVES


@pytest.mark.parametrize("path", JOURNALS, **name)
def test_a_golden_journal_is_sound_and_every_actor_can_fold_it(path: Path, copied: Any) -> None:
    copy = copied(path)
    assert maintenance.verify(copy).is_sound
    folded = replay(read_journal(copy))
    assert folded.seq == maintenance.stats(copy).events
    assert not folded.dormant


@pytest.mark.parametrize("path", JOURNALS, **name)
def test_a_golden_journal_can_be_written_on(path: Path, copied: Any) -> None:
    copy = copied(path)
    journal = SqliteJournal(copy)
    last = [*journal.read()][-1]
    journal.close()
    assert last.seq == maintenance.stats(copy).events


@pytest.mark.parametrize("path", JOURNALS, **name)
def test_a_golden_export_makes_the_same_journal(path: Path, copied: Any, tmp_path: Path) -> None:
    with path.with_suffix(".jsonl").open("rb") as lines:
        maintenance.import_(tmp_path / "journal.db", lines)
    assert [*read_journal(tmp_path / "journal.db")] == [*read_journal(copied(path))]


@pytest.mark.parametrize("path", LIVES, **name)
def test_a_golden_life_ends_as_it_did(path: Path, copied: Any) -> None:
    states = replay(read_journal(copied(path))).states
    library: LibraryState = states[LIBRARY]
    assert [model.tags for model in library.models.values()] == [
        ("file:/home/somebody/models/two.gguf", "docker.io/ai/two:latest")
    ]
    assert not library.pulls
    installer: InstallerState = states[INSTALLER]
    assert not installer.of("toy").installations
    assert installer.of("toy").wanted is False
    engines: RunnerState = states[runner_address("toy")]
    assert {one.state for one in engines.engines.values()} == {"gone"}
    assert [one.exit.signal for one in engines.engines.values() if one.exit is not None] == [
        "",
        "SIGKILL",
        "",
        "",
    ]
    scheduler: SchedulerState = states[SCHEDULER]
    assert not scheduler.loads
    assert not scheduler.breakers
    assert states[DAEMON].starts == 2
    assert states[DAEMON].running_pid == 0


def test_no_type_that_was_ever_stored_is_forgotten(copied: Any) -> None:
    there = {record.type for path in JOURNALS for record in read_journal(copied(path))}
    assert there <= event_types().keys()


def test_the_next_golden_journal_will_hold_every_type_with_every_field() -> None:
    entries = [*every_type()]
    assert {one.type for one in entries} == event_types().keys() - {CommandParked.TAG}
    for one in entries:
        assert json.loads(one.data).keys() == shapes(event_types())["events"][one.type]["fields"].keys()


# shapes


def test_nothing_stored_has_changed_without_a_new_schema() -> None:
    known = json.loads(SCHEMA.read_text())
    added, moved, silent = differences(known, shapes(event_types()))
    advice = "see `make golden` and tests/shared/golden.py"
    assert not silent, f"{silent} changed without a new SCHEMA and an upcaster: {advice}"
    assert not added, f"{added} are new: {advice}"
    assert not moved, f"{moved} have a new SCHEMA: {advice}"


class Nested(Event, frozen=True, kw_only=True):
    TAG = "nested"
    note: str = ""


class Outer(Event, frozen=True, kw_only=True):
    TAG = "outer"
    inner: Nested | None = None
    names: tuple[str, ...] = ()


class OuterLater(Event, frozen=True, kw_only=True):
    TAG = "outer"
    SCHEMA = 2
    UPCASTERS = {1: lambda fields: {**fields, "count": len(fields.get("names", ()))}}  # noqa: RUF012
    inner: Nested | None = None
    names: tuple[str, ...] = ()
    count: int


def shape_of(kind: type[Event]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(shapes({kind.TAG: kind}))))


def test_a_change_deep_inside_an_event_is_noticed() -> None:
    before, after = shape_of(Outer), shape_of(Outer)
    assert differences(before, after) == ([], [], [])
    after["structs"]["Nested"]["note"] = "str = 'another'"
    assert differences(before, after) == ([], [], ["outer"])


@pytest.mark.parametrize("change", ["str", "tuple[str, ...] = ('x',)", "tuple[int, ...] = ()"])
def test_another_type_or_default_is_a_change(change: str) -> None:
    before, after = shape_of(Outer), shape_of(Outer)
    after["events"]["outer"]["fields"]["names"] = change
    assert differences(before, after) == ([], [], ["outer"])


def test_an_event_that_is_gone_is_noticed() -> None:
    assert differences(shape_of(Outer), shape_of(Nested)) == (["nested"], [], ["outer (gone)"])


def test_shapes_reach_every_struct_inside() -> None:
    assert set(whole("engine_start_requested", shapes(event_types()))) == {
        *("", "EngineSpec", "LayersOn", "Reservation")
    }
    assert set(whole("engine_exited", shapes(event_types()))) == {"", "EngineExit", "Failure"}


def test_a_new_version_reads_what_an_old_one_stored() -> None:
    """What to do when a stored struct must change: a new SCHEMA, and how the old fields become the new."""
    assert differences(shape_of(Outer), shape_of(OuterLater)) == ([], ["outer"], [])
    old, new = Codec(), Codec()
    old.register([Outer])
    new.register([OuterLater])
    written, _ = old.entry(Outer(names=("a", "b")), stream="s", version=1, cause="", at=1.0)
    record = Record(1, 1.0, "s", 1, written.type, written.schema, "", written.data)
    stored = new.decode(record)
    assert stored is not None
    assert stored.event == OuterLater(names=("a", "b"), count=2)
    later, _ = new.entry(OuterLater(count=3), stream="s", version=2, cause="", at=1.0)
    with pytest.raises(JournalTooNew, match="schema 2"):
        old.decode(Record(2, 1.0, "s", 2, later.type, later.schema, "", later.data))
