"""Standard streams as the parent process has left them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GREENROOM = [sys.executable, "-m", "greenroom.runner.cli"]


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a shell, which can close streams; `$@` is greenroom."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *GREENROOM],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_works_with_closed_streams(our_daemon: Any, closed: str) -> None:
    our_daemon.routes["GET /engines/status"] = {"llama.cpp": "Running"}
    done = shell(f'"$@" status {closed}')
    assert done.returncode == 0
    assert done.stderr == ""


def test_no_file_takes_the_place_of_a_closed_stream(home: Path) -> None:
    """Else what is written to standard error would land in the journal."""
    script = (
        "from greenroom.runner.cli.output import prepare_streams; prepare_streams(); import os; "
        f"d = os.open({str(home / 'f')!r}, os.O_RDWR | os.O_CREAT); os._exit(d)"
    )
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, script], timeout=60)
    assert done.returncode == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full (/dev/full)")
def test_an_output_that_is_full_is_reported(our_daemon: Any) -> None:
    our_daemon.routes["GET /engines/status"] = {"llama.cpp": "Running"}
    done = shell('"$@" status > /dev/full')
    assert done.returncode == 1
    assert done.stderr == "Error: Cannot write the output: No space left on device.\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_an_output_that_cannot_take_every_letter_is_no_error(our_daemon: Any, encoding: str) -> None:
    our_daemon.routes["GET /engines/status"] = {"llama.cpp": "Running: 模型 … \ud800"}
    done = shell('"$@" status', PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "Running" in done.stdout


@pytest.mark.parametrize("how", ["$(printf 'caf\\351')", "- < letter"])
def test_a_prompt_that_is_not_utf_8_reaches_the_model_as_text(our_daemon: Any, home: Path, how: str) -> None:
    (home / "letter").write_bytes(b"caf\xe9")
    our_daemon.routes["POST /v1/chat/completions"] = lambda seen: iter(["data: [DONE]", ""])
    how = "" if how.startswith("-") else f'"{how}"'
    feed = f"< {home}/letter" if not how else "< /dev/null"
    done = shell(f'"$@" run smollm2 {how} {feed}', PYTHONIOENCODING="utf-8:strict")
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    body = our_daemon.bodies("/v1/chat/completions")[-1]
    assert body["messages"][-1]["content"] == "caf\ufffd"
