"""Codex, by its command line: a conversation, and a model that does not exist."""

import os
import subprocess
import tempfile
from pathlib import Path

from checks import ABSENT, BASE, MODEL, check, raised, run

CONFIG = f"""
model = "{MODEL}"
model_provider = "greenroom"
model_instructions_file = "instructions.md"

[model_providers.greenroom]
name = "greenroom"
base_url = "{BASE}/v1"
wire_api = "responses"
"""


def codex(home: Path, *arguments: str) -> str:
    # Its own instructions are longer than the context of a small model.
    (home / "instructions.md").write_text("You answer in one short sentence.")
    (home / "config.toml").write_text(CONFIG.replace("instructions.md", str(home / "instructions.md")))
    done = subprocess.run(
        ["codex", "exec", "--skip-git-repo-check", *arguments],
        env={**os.environ, "CODEX_HOME": str(home)},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout


@check("chat")
def _() -> None:
    assert codex(Path(tempfile.mkdtemp()), "Say hello.").strip()


@check("errors")
def _() -> None:
    failed = raised(RuntimeError, lambda: codex(Path(tempfile.mkdtemp()), "--model", ABSENT, "Say hello."))
    assert ABSENT in str(failed)


run()
