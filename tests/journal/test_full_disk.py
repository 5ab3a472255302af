"""No space: what can wait is refused, what must be recorded is, and all goes on when there is space."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "full_disk.py"


def assert_it_coped(output: str) -> None:
    said = json.loads(output)
    assert said["first"] > 20
    assert said["still_full"]
    assert said["stops"] == 40
    assert not said["others_after_stops"]
    assert said["read_while_full"]
    assert said["again"] == 50
    assert said["reserve"]
    assert said["read_at_the_end"]


def test_with_a_limit_on_file_sizes_stops_are_still_recorded(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), "limit", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert_it_coped(ended.stdout)


def test_on_a_full_disk_stops_are_still_recorded(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare for a small disk of its own: apt-get install util-linux")
    script = 'mount -t tmpfs -o size=8m tmpfs "$1" && exec "$2" "$3" disk "$1"'
    ended = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, str(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "unshare failed" in ended.stderr or "mount:" in ended.stderr:
        pytest.skip(f"needs user namespaces with mounts: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
    assert_it_coped(ended.stdout)
