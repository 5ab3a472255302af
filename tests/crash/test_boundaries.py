"""The daemon is killed at every boundary of a scripted life, and each life comes to the same end.

Install, pull, tag, configure, load, requests, eviction, crash of an engine, loss of the daemon, unload,
removal, uninstall, stop. The boundaries are those of an undisturbed life; `crashing` says what is
checked, and `crash_daemons.py` what the four points are.
"""

from __future__ import annotations

import queue
import shutil
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest

from crashing import POINTS, Daemons, Kill, Life, boundaries

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc (Linux)")

WORKERS = 2
SAMPLE = 4


def undisturbed(place: Path) -> list[Kill]:
    """Live once in peace; the boundaries that were found."""
    daemons = Daemons(place / "wheels")
    try:
        Life(daemons, place / "h", place / "m").live()
    finally:
        daemons.close()
    return boundaries(place / "h")


def killed_at(place: Path, kills: Sequence[Kill]) -> tuple[int, list[str]]:
    """Live once for each kill; how many daemons died there, and what was wrong afterwards."""
    left: queue.SimpleQueue[tuple[int, Kill]] = queue.SimpleQueue()
    for numbered in enumerate(kills):
        left.put(numbered)
    done: list[Kill] = []
    wrong: list[str] = []

    def work() -> None:
        daemons = Daemons(place / "wheels")
        try:
            while True:
                number, kill = left.get_nowait()
                life = Life(daemons, place / f"h{number}", place / "m", kill)
                try:
                    life.live()
                except BaseException:  # noqa: BLE001 - the others are tried all the same
                    wrong.append(f"{kill}\n{traceback.format_exc()}")
                else:
                    shutil.rmtree(life.home)
                if life.killed:
                    done.append(kill)
        except queue.Empty:
            pass
        finally:
            daemons.close()

    workers = [threading.Thread(target=work) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(done), wrong


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
    daemons = Daemons(place / "wheels")
    kill = Kill("library/2", "model_committed", "after")
    try:
        with pytest.raises(AssertionError, match="acknowledged"):
            Life(daemons, place / "h", place / "m", kill, late="model_committed").live()
    finally:
        daemons.close()


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
