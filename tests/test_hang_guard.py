"""A test that cannot be interrupted costs its own result, not the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HANGS = """
import threading

import hang_guard
import pytest

hang_guard.grace = 0.5


@pytest.fixture
def never_cleaned_up():
    yield
    threading.Event().wait()


@pytest.mark.timeout(0.5)
def test_that_hangs(never_cleaned_up):
    raise RuntimeError("pytest cancels its own guard at a failure")


def test_after_it():
    pass
"""


def test_a_cleanup_that_hangs_ends_its_process_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["hang_guard"]\n')
    (tmp_path / "test_sample.py").write_text(HANGS)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 30\n")
    argv = [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "no:asyncio", "-p", "no:cacheprovider"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "shared")}
    env.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "crashed while running 'test_sample.py::test_that_hangs'" in said
    assert "in never_cleaned_up" in said
    assert "1 passed" in said
