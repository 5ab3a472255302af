"""The examples that chat, on the real model: inside the program, and through a daemon that programs share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon_process import without_settings

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def run(program: str, *arguments: str, home: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program), *arguments],
        capture_output=True,
        text=True,
        timeout=250,
        env={**without_settings(), "GREENROOM_HOME": str(home)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_program_chats_with_the_model_inside_it(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    home = make_daemon(furnished).home
    assert len(run("chat.py", str(smollm2_gguf), "Name a colour.", home=home).split()) > 1


def test_programs_chat_through_a_daemon_they_share(
    furnished: Path, make_daemon: Callable[..., Any], tmp_path: Path, smollm2_gguf: Path
) -> None:
    home = make_daemon(furnished).home
    questions = "Name a colour.", "Name a fruit."
    try:
        said = run("shared.py", str(home), str(smollm2_gguf), *questions, home=tmp_path / "other")
        assert said.count("tokens in") == 2
    finally:
        stop = [sys.executable, "-m", "greenroom.runner.cli", "--home", str(home), "stop"]
        subprocess.run(stop, env=without_settings(), check=True, timeout=120)
