"""SIGKILL between any two steps, and in the middle of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.journal.conformance import entry
from greenroom.actors.journal.maintenance import verify
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.sqlite import SqliteJournal


@pytest.mark.parametrize(
    ("tear", "every"),
    [
        pytest.param(False, 4, id="between_some_steps"),
        pytest.param(True, 5, id="in_the_middle_of_some_writes"),
        pytest.param(False, 1, id="between_any_steps", marks=pytest.mark.slow),
        pytest.param(True, 1, id="in_the_middle_of_every_write", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_step_nothing_acknowledged_is_lost_and_no_batch_is_half_there(
    live: Any, folder: Path, tear: bool, every: int
) -> None:
    undisturbed = live(folder / "undisturbed")
    steps = undisturbed["heard"][-1]["steps"]
    everything = acknowledged(undisturbed)
    assert len(everything) == 32
    assert steps > 100
    kills = 0
    for step in range(1, steps + 1, every):
        home = folder / f"killed-{step}"
        came = live(home, kill_at=step, tear=tear)
        assert came["killed"], f"not killed at step {step} of {steps}: {came}"
        kills += 1
        told = acknowledged(came)
        stored = read_as_reader(home)
        assert stored == everything[: len(stored)], f"killed at step {step}"
        assert len(stored) in (len(told), len(told) + 2), f"killed at step {step}"
        journal = SqliteJournal(home / "journal.db")
        assert [record.id for record in journal.read()] == stored
        journal.append([entry("after", 1)])
        journal.close()
        assert not (home / "journal.db-wal").exists()
        assert verify(home / "journal.db").is_sound
    assert kills == len(range(0, steps, every))


def acknowledged(came: dict[str, Any]) -> list[str]:
    return [id_ for said in came["heard"] for id_ in said.get("acknowledged", ())]


def read_as_reader(folder: Path) -> list[str]:
    try:
        with JournalReader(folder / "journal.db") as reader:
            return [record.id for record in reader.read()]
    except FileNotFoundError:
        return []
