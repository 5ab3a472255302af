"""The daemon is killed at every boundary of a scripted life, and each life comes to the same end.

Install, pull, tag, configure, load, requests, eviction, crash of an engine, loss of the daemon, unload,
removal, uninstall, stop. The boundaries are those of an undisturbed life; `crashing` says what is
checked, and `crash_daemon.py` what the four points are.
"""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crashing import POINTS, Kill, Life, boundaries

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc (Linux)")

WORKERS = 2
SAMPLE = 4


def undisturbed(place: Path) -> list[Kill]:
    """Live once in peace; the boundaries that were found."""
    Life(place).live()
    return boundaries(place / "h")


def killed_at(place: Path, kills: Sequence[Kill]) -> tuple[int, list[str]]:
    """Live once for each kill; how many daemons died there, and what was wrong afterwards."""

    def live(numbered: tuple[int, Kill]) -> tuple[bool, str]:
        number, kill = numbered
        life = Life(place, f"h{number}", kill)
        try:
            life.live()
        except BaseException:  # noqa: BLE001 - the others are tried all the same
            return bool(life.killed), f"{kill}\n{traceback.format_exc()}"
        shutil.rmtree(life.home)
        return bool(life.killed), ""

    with ThreadPoolExecutor(WORKERS) as pool:
        outcomes = [*pool.map(live, enumerate(kills))]
    return sum(died for died, _ in outcomes), [wrong for _, wrong in outcomes if wrong]


def told(wrong: Sequence[str]) -> str:
    return f"{len(wrong)} lives went wrong:\n" + "\n".join(wrong)


def test_lives_killed_at_some_boundaries_come_to_the_same_end(place: Path) -> None:
    every = undisturbed(place)
    # Apart by an odd number, so that each point has its turn.
    stride = len(every) // SAMPLE | 1
    kills, wrong = killed_at(place, every[1::stride])
    assert not wrong, told(wrong)
    assert kills == len(every[1::stride])


def test_an_event_that_is_reported_before_it_is_stored_is_detected(place: Path) -> None:
    kill = Kill("library/2", "model_committed", "after")
    with pytest.raises(AssertionError, match="acknowledged"):
        Life(place, kill=kill, late="model_committed").live()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_lives_killed_at_every_boundary_come_to_the_same_end(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = undisturbed(place)
    kills, wrong = killed_at(place, every)
    with capsys.disabled():
        print(f"\nkills = {len(POINTS)} x {len(every) // len(POINTS)} events = {kills}")
    assert not wrong, told(wrong)
    assert kills == len(POINTS) * (len(every) // len(POINTS))
    assert len({kill.event for kill in every}) >= 40
