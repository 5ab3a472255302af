"""Runs pytest with the arguments it is given; tests that fail beside others run once more, alone.

Most tests start real processes and expect something of them within seconds. On a virtual machine that stands
still for a moment, one of thousands then fails. A test that fails alone as well fails the run; one that
passes is listed as UNSTEADY, to be fixed: its timing, or a race that it has found. More than a few
failures are no accident, and nothing runs again.

    python tests/shared/run_tests.py PYTEST-ARGUMENTS…
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MOST = 5
"""Failures that may be accidents of one run."""
FAILED = 1
"""pytest's exit status when it ran to its end and tests failed."""
FAILURES = Path(".pytest_cache/v/cache/lastfailed")
ALONE = ("-p", "no:cacheprovider")


def main(arguments: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest"]
    status = subprocess.run([*pytest, "--cache-clear", *arguments], check=False).returncode
    if status != FAILED:
        return status
    failures = list(json.loads(FAILURES.read_text()))
    if len(failures) > MOST:
        return status
    print(
        f"\nRunning {len(failures)} failed {'test' if len(failures) == 1 else 'tests'} again, alone.",
        flush=True,
    )
    # One process each: what one has left behind does not reach the next.
    again = [test for test in failures if subprocess.run([*pytest, *ALONE, test], check=False).returncode]
    for test in failures:
        print(f"{'FAILED TWICE' if test in again else 'UNSTEADY'} {test}")
    return status if again else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
