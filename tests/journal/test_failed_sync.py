"""A sync that fails: what is on disk is unknown, so the journal ends there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from greenroom.actors.journal.reader import JournalReader


def test_whichever_sync_fails_the_journal_ends_and_nothing_acknowledged_is_lost(
    live: Any, folder: Path
) -> None:
    undisturbed = live(folder / "undisturbed")
    syncs = undisturbed["heard"][-1]["syncs"]
    everything = acknowledged(undisturbed)
    assert syncs > 30
    failed = 0
    for sync in range(1, syncs + 1):
        home = folder / f"failed-{sync}"
        came = live(home, fail_sync_at=sync)
        # life.py itself makes sure that a journal that has failed takes nothing more.
        assert came["code"] == 0, came
        failed += any("failed" in said or "not_opened" in said for said in came["heard"])
        told = acknowledged(came)
        stored = stored_in(home)
        assert stored == everything[: len(stored)]
        assert len(stored) >= len(told)
    # All but those at the close, when no caller is left.
    assert failed > syncs * 0.8


def test_a_disk_that_breaks_is_not_taken_for_a_full_one(live: Any, folder: Path) -> None:
    writes = live(folder / "undisturbed")["heard"][-1]["writes"]
    assert writes > 60
    ends = []
    for write in range(1, writes, 5):
        came = live(folder / f"broken-{write}", break_at=write)
        assert came["code"] == 0, came
        ends += [one.get("failed") or one.get("not_opened") or "" for one in came["heard"]]
        stored = stored_in(folder / f"broken-{write}")
        assert stored[: len(acknowledged(came))] == acknowledged(came)
    said = [one for one in ends if one]
    assert len(said) > 10
    assert not [one for one in said if "space" in one or "full" in one.lower()]
    assert any("Input/output error" in one for one in said)


def stored_in(home: Path) -> list[str]:
    try:
        with JournalReader(home / "journal.db") as reader:
            return [record.id for record in reader.read()]
    except FileNotFoundError:
        return []


def acknowledged(came: dict[str, Any]) -> list[str]:
    return [id_ for said in came["heard"] for id_ in said.get("acknowledged", ())]
