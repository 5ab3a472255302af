"""`make test` runs failed tests again, alone; only those that pass then are forgiven."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RUN_TESTS = Path(__file__).parent / "shared" / "run_tests.py"
TESTS = """
from pathlib import Path

import pytest


def test_well():
    pass


def test_unsteady():
    seen = Path("seen")
    if not seen.exists():
        seen.touch()
        raise AssertionError("the first time")


@pytest.mark.parametrize("number", range({broken}))
def test_broken(number):
    raise AssertionError("every time")
"""


def run(folder: Path, *, broken: int) -> tuple[int, str]:
    (folder / "test_sample.py").write_text(TESTS.format(broken=broken))
    (folder / "pytest.ini").write_text("[pytest]\n")
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    argv = [sys.executable, str(RUN_TESTS), "-q"]
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_a_test_that_passes_alone_is_named_and_fails_nothing(tmp_path: Path) -> None:
    status, said = run(tmp_path, broken=0)
    assert status == 0, said
    assert "UNSTEADY test_sample.py::test_unsteady" in said


def test_a_test_that_fails_alone_as_well_fails_the_run(tmp_path: Path) -> None:
    status, said = run(tmp_path, broken=1)
    assert status == 1, said
    assert "UNSTEADY test_sample.py::test_unsteady" in said
    assert "FAILED TWICE test_sample.py::test_broken[0]" in said


def test_many_failures_are_no_accident_and_nothing_runs_again(tmp_path: Path) -> None:
    status, said = run(tmp_path, broken=5)
    assert status == 1, said
    assert "again" not in said
