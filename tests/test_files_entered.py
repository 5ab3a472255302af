"""How many of our source files a reader of one request has to open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("files_entered.py")


@pytest.mark.parametrize("journey", ["loaded", "installing"])
def test_a_chat_completion_enters_few_files(journey: str) -> None:
    # In a process of its own: it looks at every call of every thread.
    done = subprocess.run([sys.executable, SCRIPT, journey], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
