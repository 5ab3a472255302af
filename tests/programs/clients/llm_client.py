"""Simon Willison's `llm`, by its command line: chat, stream, and a schema."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import ABSENT, BASE, MODEL, STORY, check, run

home = Path(tempfile.mkdtemp())
entry = "- {{model_id: {}, model_name: {}, api_base: {}/v1, supports_schema: true}}\n"
(home / "extra-openai-models.yaml").write_text(
    entry.format("here", json.dumps(MODEL), BASE) + entry.format("absent", ABSENT, BASE)
)


def llm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "llm"), *arguments],
        env={**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@check("chat")
def _() -> None:
    done = llm("-m", "here", "--no-stream", "-o", "max_tokens", "8", STORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@check("stream")
def _() -> None:
    done = llm("-m", "here", "-o", "max_tokens", "8", STORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@check("schema")
def _() -> None:
    done = llm("-m", "here", "-o", "max_tokens", "64", "--schema", "name, age int", "A dog.")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"name", "age"}


@check("errors")
def _() -> None:
    done = llm("-m", "absent", STORY)
    assert done.returncode != 0
    assert ABSENT in done.stderr


run()
