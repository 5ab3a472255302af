"""An agent's session with a real model goes on after its daemon has ended, without reading it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import real_clients
from waiting import until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.clients, pytest.mark.timeout(3600)]

MODEL = "gemma"
CONTEXT = 16_384
"""Tokens: opencode's instructions and tools are some 7,000."""
ANSWER = 16
SLACK = 64
"""Tokens of its prompt that may not be given back: the template ends otherwise before an answer."""
TAIL = 400
"""Tokens that a next turn may read at most."""
BOUND = 1_500.0


class Session:
    """One session of opencode, as `greenroom launch` starts it."""

    def __init__(self, daemon: Any, folder: Path, cache: Path) -> None:
        self._daemon, self._folder = daemon, folder
        settings_folder = folder / ".config" / "opencode"
        settings_folder.mkdir(parents=True)
        limit = {"context": CONTEXT, "output": ANSWER}
        settings = {"provider": {"greenroom": {"models": {MODEL: {"limit": limit}}}}}
        (settings_folder / "opencode.json").write_text(json.dumps(settings))
        installed = real_clients.install("opencode", cache) / "node_modules" / ".bin"
        path = (real_clients.node_folder(), installed, os.environ["PATH"])
        self._env = {"HOME": str(folder), "PWD": str(folder), "PATH": os.pathsep.join(map(str, path))}

    def ask(self, *words: str) -> dict[str, Any]:
        """The record of the request for an answer to it: the one with the longest prompt."""
        before = {one["id"] for one in self._requests()}
        argv = [sys.executable, "-m", "greenroom.runner.cli", "launch", "opencode", "--model", MODEL]
        done = subprocess.run(
            [*argv, "--", "run", *words],
            cwd=self._folder,
            env={**self._daemon.env, **self._env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOUND,
        )
        assert done.returncode == 0, done.stderr
        new = [one for one in self._requests() if one["id"] not in before and one["tokens_in"]]
        return max(new, key=lambda one: one["tokens_in"])

    def _requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._daemon.get("/requests?model=" + MODEL).json
        return found


@pytest.fixture
def daemon(furnished_with_llama_cpp: Path, make_daemon: Callable[..., Any], gemma3_gguf: Path) -> Any:
    made = make_daemon(furnished_with_llama_cpp)
    made.bound = BOUND
    made.start()
    made.pull(str(gemma3_gguf))
    assert made.post(f"/models/{gemma3_gguf}/tag?repo={MODEL}&tag=latest", {}).status in (200, 201)
    # Two slots: opencode has a title made of the session meanwhile.
    made.configure(MODEL, **{"context-size": CONTEXT, "slots": 2})
    return made


def test_an_agents_session_goes_on_after_a_restart_and_after_a_crash(
    daemon: Any, tmp_path: Path, test_cache: Path
) -> None:
    session = Session(daemon, tmp_path / "agent", test_cache)
    first = session.ask("Say hello.")
    assert first["tokens_in"] > 4_000
    assert first["tokens_restored"] == 0

    daemon.restart()
    second = session.ask("--continue", "And then?")
    assert_goes_on(second, first)
    assert second["restored_why"]

    (engine,) = daemon.engines()
    daemon.kill()
    psutil.Process(engine["pid"]).send_signal(signal.SIGKILL)
    daemon.start()
    until(lambda: not daemon.engines(), 60)
    assert_goes_on(session.ask("--continue", "And then?"), first)


def assert_goes_on(later: dict[str, Any], first: dict[str, Any]) -> None:
    """The engine was given what had been read for the first answer, and read little besides."""
    assert later["tokens_restored"] >= first["tokens_in"] - SLACK
    assert later["tokens_in"] - later["tokens_cached"] < TAIL
