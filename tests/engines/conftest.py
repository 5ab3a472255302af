"""Real keepers and real processes; what plays the engine is `tests/programs/fake_engine.py`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_stage import Stage
from odd_stage import Odd
from process_lock import process_lock


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Everything one test needs; nothing it started outlives it."""
    folder = tmp_path / "engines"
    folder.mkdir()
    made = Stage(folder)
    yield made
    made.close()


@pytest.fixture
def odd(stage: Stage, tmp_path: Path) -> Odd:
    return Odd(stage, tmp_path, 3.0)


@pytest.fixture(scope="session")
def llama_cpp_python(test_cache: Path) -> Path:
    """The interpreter of an environment with xllamacpp."""
    from uv import find_uv_bin

    environment = test_cache / "llama-cpp-env"
    python, mark = environment / "bin" / "python", environment / "whole"
    with process_lock(test_cache, "llama-cpp-env"):
        if not mark.exists():
            shutil.rmtree(environment, ignore_errors=True)
            for words in (
                ["venv", "--quiet", "--python", sys.executable, str(environment)],
                ["pip", "install", "--quiet", "--python", str(python), "xllamacpp"],
            ):
                subprocess.run([find_uv_bin(), *words], check=True, timeout=600)
            mark.touch()
    return python
