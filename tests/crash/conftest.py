"""A place for lives: short, since sockets lie in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crashing import Life, write_models
from toy import make_wheel


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a wheel of a backend and two models, in which lives are lived."""
    folder = Path(tempfile.mkdtemp(prefix="gr-"))
    make_wheel(folder / "wheels")
    write_models(folder / "m")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def begin_life(place: Path) -> Iterator[Callable[[], Life]]:
    """Lives that a test leads step by step; they and their engines end with it."""
    lives: list[Life] = []

    def begin() -> Life:
        lives.append(Life(place, f"h{len(lives)}"))
        return lives[-1]

    yield begin
    for life in lives:
        life.end()


@pytest.fixture
def life(begin_life: Callable[[], Life]) -> Life:
    """A daemon with two models and an engine that is ready."""
    life = begin_life()
    life.start()
    life.install()
    for name in ("one", "two"):
        life.pull(name)
        life.tag(name)
    life.chat("two")
    return life
