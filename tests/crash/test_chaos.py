"""Faults hit a live daemon at random; every client gets an answer or a reason, and nothing is lost."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos import Chaos

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits another process (Linux)")


@pytest.fixture
def run_chaos(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[int, float], Chaos]]:
    """`run_chaos(seed, seconds)`; `GREENROOM_CHAOS_SEED` is another seed."""
    made: list[Chaos] = []

    def live(seed: int, seconds: float) -> Chaos:
        seed = int(os.environ.get("GREENROOM_CHAOS_SEED", seed))
        with capsys.disabled():
            print(f"\nseed {seed}")
        made.append(Chaos(short_path, seed))
        made[0].run(seconds)
        with capsys.disabled():
            print(f"{len(made[0].happened)} faults, {dict(made[0].answers)}")
        return made[0]

    yield live
    for chaos in made:
        chaos.end()


def test_some_seconds_of_chaos_lose_nothing(run_chaos: Callable[[int, float], Chaos]) -> None:
    chaos = run_chaos(1, 6.0)
    assert chaos.happened


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_minutes_of_chaos_lose_nothing(run_chaos: Callable[[int, float], Chaos]) -> None:
    chaos = run_chaos(random.randrange(2**32), 600.0)
    assert len(chaos.happened) > 100
    assert chaos.answers["chat"] > 100
