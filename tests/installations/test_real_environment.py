from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.installations.environment import Environments
from greenroom.runner.installations.installed import python_of
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.verification import run_python

pytestmark = pytest.mark.real


@pytest.fixture
def home(tmp_path: Path, test_cache: Path) -> Path:
    """A data directory whose cache outlives the test run: only the first one fetches anything."""
    cache = test_cache / "installations"
    cache.mkdir(parents=True, exist_ok=True)
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "cache").symlink_to(cache)
    return folder


def test_llama_cpp_is_installed_from_its_lock_with_the_settings_of_this_machine(home: Path) -> None:
    backend = BACKENDS["llama.cpp"]
    environments = Environments(home, PackageSources.discover())
    reports: list[Any] = []
    built = environments.build("llama.cpp", backend.source, job="j", progress=reports.append)  # type: ignore[arg-type]
    assert reports[-1].done == reports[-1].total > 5_000_000
    outcome = run_python(python_of(home, built), ["-c", "import xllamacpp; print('ok')"], seconds=60)
    assert outcome.output.strip() == "ok"
    assert environments.installed.verify(built) == []
    began = time.monotonic()
    assert environments.installed.look("llama.cpp") == [built]
    assert time.monotonic() - began < 2, "measured at 20 ms; bench/ holds the budget"
