"""opencode, by its command line: a conversation, and a model that does not exist."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from checks import ABSENT, BASE, MODEL, check, raised, run

CONFIG = {
    "provider": {
        "greenroom": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "Greenroom",
            "options": {"baseURL": f"{BASE}/v1"},
            "models": {
                name: {"limit": {"context": 8192, "output": 256}, "tool_call": False}
                for name in (MODEL, ABSENT)
            },
        }
    },
    # Its own instructions are longer than the context of a small model.
    "agent": {
        "short": {"mode": "primary", "prompt": "You answer in one short sentence.", "tools": {"*": False}}
    },
    "autoupdate": False,
    "share": "disabled",
}


def opencode(model: str) -> str:
    home = Path(tempfile.mkdtemp())
    (home / "opencode.json").write_text(json.dumps(CONFIG))
    done = subprocess.run(
        [
            "opencode",
            "run",
            "--model",
            f"greenroom/{model}",
            "--agent",
            "short",
            "--print-logs",
            "Say hello.",
        ],
        env={
            **os.environ,
            "HOME": str(home),
            "OPENCODE_CONFIG": str(home / "opencode.json"),
            "OPENCODE_DISABLE_MODELS_FETCH": "true",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS": "true",
        },
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    if done.returncode != 0 or not done.stdout.strip():
        raise RuntimeError(done.stdout + done.stderr[-6000:])
    return done.stdout


@check("chat")
def _() -> None:
    assert opencode(MODEL).strip()


@check("errors")
def _() -> None:
    assert ABSENT in str(raised(RuntimeError, lambda: opencode(ABSENT)))


run()
