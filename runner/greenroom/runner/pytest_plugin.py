"""Pytest fixtures, which pytest finds if Greenroom is installed.

They import what they need when a test uses them: other test runs import only this file.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from greenroom.runner import Client, FakeEngine


@pytest.fixture
def greenroom_folder() -> Iterator[Path]:
    """A temporary folder with a short path, since it contains sockets; it is removed after the test."""
    folder = Path(tempfile.mkdtemp(prefix="gr-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def greenroom_models() -> Sequence[str]:
    """The names of the models that `greenroom` has. Override this fixture to have others."""
    return ("tiny",)


@pytest.fixture
def fake_engine(greenroom_folder: Path) -> FakeEngine:
    """Controls the engines of `greenroom`, and records their requests. See `greenroom.runner.FakeEngine`."""
    from greenroom.runner import FakeEngine

    folder = greenroom_folder / "engine"
    folder.mkdir()
    return FakeEngine(folder)


@pytest.fixture
def greenroom(
    greenroom_folder: Path, greenroom_models: Sequence[str], fake_engine: FakeEngine
) -> Iterator[Client]:
    """A client of a complete Greenroom in a temporary data directory, whose engines are `fake_engine`.

    It needs no network and no model. `greenroom.in_asyncio()` is the client for asyncio, `greenroom.runner`
    the Greenroom itself.
    """
    from greenroom.runner import ExternalBackend, Greenroom, Settings, tiny_gguf

    names = enumerate(greenroom_models)
    models = {name: str(tiny_gguf(greenroom_folder / f"{n}.gguf", name)) for n, name in names}
    # An interpreter of the user's own, so that the backend counts as installed.
    backends = {"fake": ExternalBackend(binary=Path(sys.executable))}
    settings = Settings(home=greenroom_folder / "home", models=models, backends=backends)
    with Greenroom(settings, backends={"fake": fake_engine.backend}).client() as client:
        for name in models:
            client.pull(name)
        yield client
