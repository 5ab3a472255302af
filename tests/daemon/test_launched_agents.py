"""The agents that `greenroom launch` starts, at their newest versions, on a daemon with the fake engine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

import real_clients
from daemon_process import without_settings
from wedge import Daemon

pytestmark = [pytest.mark.slow, pytest.mark.clients, pytest.mark.timeout(1500)]

BOUND = 600.0
"""Seconds for one answer: opencode fetches a package first."""
ASKED = {
    "codex": ("exec", "--skip-git-repo-check", "Say hello."),
    "claude": ("-p", "Say hello."),
    "opencode": ("run", "Say hello."),
}


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="gr-a-") as folder:
        async with aiohttp.ClientSession() as session:
            made = Daemon(Path(folder) / "h", session, ("--tokens", "5"))
            await made.start()
            yield made
            await made.clean_up()


@pytest.mark.parametrize("agent", ASKED)
async def test_a_launched_agent_is_answered_by_our_model(
    daemon: Daemon, agent: str, tmp_path: Path, test_cache: Path
) -> None:
    folder = real_clients.install(agent, test_cache)
    await daemon.add("tiny")
    path = (real_clients.node_folder(), folder / "node_modules" / ".bin", os.environ["PATH"])
    env = {
        **without_settings("ANTHROPIC_", "OPENAI_", "CODEX_", "CLAUDE", "OPENCODE_"),
        "GREENROOM_HOME": str(daemon.home),
        "HOME": str(tmp_path),
        "PATH": os.pathsep.join(map(str, path)),
    }
    words = ("launch", agent, "--model", "tiny", "--", *ASKED[agent])
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "greenroom.runner.cli", *words],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "word0 word1 word2 word3 word4"), done.stderr
