"""`greenroom launch`: what a client is started with. The client is a program that writes down what it got."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.cli.client_programs import CLIENTS, LaunchedClient, insert
from greenroom.runner.cli.launch import setup

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
CONTEXT = {"mode": "completion", "setting": "context-size", "value": 8192, "source": "configured"}
MODEL = {
    "id": "sha256:" + "ab" * 32,
    "tags": ["docker.io/ai/smollm2:latest"],
    "config": {"context_size": 131072},
    "settings": [
        {"mode": "embedding", "setting": "context-size", "value": 512, "source": "packaged"},
        {"mode": "completion", "setting": "slots", "value": None, "source": "automatic"},
        CONTEXT,
    ],
}
_RECORDER = """#!{python}
import json, os, sys
with open({file!r}, "w") as out:
    json.dump({{"argv": sys.argv[1:], "env": dict(os.environ)}}, out)
sys.exit(7)
"""


@pytest.fixture
def stored(our_daemon: Any) -> Any:
    our_daemon.routes |= {"GET /models": [MODEL], "GET /models/smollm2": MODEL}
    return our_daemon


@pytest.fixture
def programs_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every client is there; each writes `told.json` and exits with 7."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for one in CLIENTS:
        program = folder / one.program
        program.write_text(_RECORDER.format(python=sys.executable, file=str(tmp_path / "told.json")))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "told.json"


@pytest.mark.parametrize("client", ["codex", "claude"])
def test_a_client_is_started_with_our_address_and_its_own_arguments(
    greenroom_process: Any, stored: Any, programs_on_path: Path, client: str
) -> None:
    done = greenroom_process("launch", client, "exec", "--yes", "Say hello.", "--model", "smollm2")
    assert done.returncode == 7, "it has become the client"
    told = json.loads(programs_on_path.read_text())
    assert told["argv"][-3:] == ["exec", "--yes", "Say hello."]
    assert stored.url in " ".join([*told["argv"], told["env"].get("ANTHROPIC_BASE_URL", "")])
    assert "for this start only:" in done.stderr
    assert "The context of smollm2 has 8192 tokens" in done.stderr
    assert "For long tasks choose a model that has more." in done.stderr
    stored.routes["GET /models/smollm2"] = {**MODEL, "settings": [{**CONTEXT, "trained": 32768}]}
    again = greenroom_process("launch", client, "--model", "smollm2")
    assert "For more: greenroom configure smollm2 --context max" in again.stderr


@pytest.mark.parametrize("client", CLIENTS, ids=lambda one: one.name)
def test_what_is_printed_sets_the_same_in_a_shell(
    greenroom: Any, stored: Any, programs_on_path: Path, client: LaunchedClient
) -> None:
    printed = greenroom("launch", client.name, "--print")
    assert (printed.code, printed.err) == (0, "")
    assert not programs_on_path.exists(), "nothing was started"
    done = subprocess.run(["sh", "-c", printed.out], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    told = json.loads(programs_on_path.read_text())
    environment, words = setup(client, stored.url, "smollm2")
    assert told["argv"] == words[1:]
    assert environment.items() <= told["env"].items()


def test_codex_and_opencode_get_settings_that_they_can_read() -> None:
    known = {one.name: one for one in CLIENTS}
    _, words = setup(known["codex"], "http://127.0.0.1:1", "odd:q")
    settings = tomllib.loads("\n".join(words[2::2]))
    assert settings["model_providers"]["greenroom"]["base_url"] == "http://127.0.0.1:1/v1"
    assert settings["model"] == "odd:q"
    environment, _ = setup(known["opencode"], "http://127.0.0.1:1", "smollm2")
    config = json.loads(environment["OPENCODE_CONFIG_CONTENT"])
    assert config["model"] == "greenroom/smollm2"
    assert config["provider"]["greenroom"]["models"] == {"smollm2": {}}


def test_what_cannot_be_started_is_said(
    greenroom: Any, stored: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = greenroom("launch", "codex")
    assert (missing.code, "Codex is not installed. Install it: npm install" in missing.err) == (1, True)
    unknown = greenroom("launch", "nope")
    assert (unknown.code, "It knows codex, claude" in unknown.err) == (2, True)
    absent = greenroom("launch", "codex", "--print", "--model", "none")
    assert (absent.code, "There is no model none in the store. Pull it:" in absent.err) == (1, True)
    stored.routes["GET /models"] = [MODEL, {**MODEL, "tags": ["docker.io/ai/other:latest"]}]
    which = greenroom("launch", "codex", "--print")
    assert (which.code, "Add --model with one of: other, smollm2" in which.err) == (2, True)
    assert "open-webui" in greenroom("launch").out


def test_the_page_of_clients_has_the_table() -> None:
    page = PAGE.read_text("utf-8")
    assert insert(page) == page, "python -m greenroom.runner.cli.client_programs docs/clients.md"
