"""`why` beside a real daemon: whether it runs, what only it knows, and whether what is advised works."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from waiting import suspend, until

SMALL = "300MB"
"""Less than the smallest engine of the real model."""


def why(daemon: Any, *words: str) -> Any:
    """The answer from the files of this data directory, as one line of text."""
    # The tests' own commands name the daemon; people's do not.
    told = daemon.run("why", *words, GREENROOM_HOST="")
    return " ".join((told.stdout or told.stderr).split())


def asked(daemon: Any, name: str) -> Any:
    """The answer of the running daemon."""
    return daemon.get(f"/why/{name}").json


def follow(daemon: Any, command: str) -> None:
    """Do what an answer advises."""
    for part in command.split(" && "):
        words = shlex.split(part)
        variables = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))
        words = [
            word for word in words if word not in {f"{name}={value}" for name, value in variables.items()}
        ]
        assert words[0] == "greenroom", command
        if words[1:] == ["stop"]:
            daemon.stop()
        elif words[1] == "serve":
            daemon.start(**variables)
        else:
            done = daemon.run(*words[1:], *(["hi"] if words[1] == "run" else []))
            assert done.returncode == 0, f"{command}: {done.stderr}"


def advised(daemon: Any, name: str, aim: str) -> str:
    found = json.loads(daemon.run("why", name, "--json", GREENROOM_HOST="").stdout)
    commands = [one["command"] for one in found["remedies"] if one["aim"] == aim]
    assert commands, found
    return str(commands[0])


def test_why_alone_says_whether_the_daemon_runs(make_daemon: Callable[..., Any]) -> None:
    daemon = make_daemon(GREENROOM_KEEP_ALIVE="7m")
    # The command line of a fork is not that of a daemon.
    daemon.wrapper = ("env",)
    daemon.start()
    pid = daemon.process.pid

    assert "has been running since" in why(daemon)
    assert "keep_alive 7m (environment GREENROOM_KEEP_ALIVE)" in " ".join(asked(daemon, "daemon")["also"])
    assert asked(daemon, "queue")["answer"] == "No request is queued."
    assert "is reserved for no engine, and" in asked(daemon, "memory")["answer"]
    assert asked(daemon, str(pid))["kind"] == "daemon"

    suspend(pid)
    assert "is suspended, by SIGSTOP, Ctrl-Z or a debugger. Resume it: kill -CONT" in why(daemon)
    os.kill(pid, signal.SIGCONT)
    daemon.kill()
    assert why(daemon).startswith(f"Greenroom is not running: process {pid} was killed or crashed after ")

    daemon.start(GREENROOM_KEEP_ALIVE="9m")
    told = why(daemon, "daemon")
    assert (
        "keep_alive was 7m (environment GREENROOM_KEEP_ALIVE), now 9m (environment GREENROOM_KEEP_ALIVE)"
        in told
    )
    daemon.stop()
    assert why(daemon).startswith("Greenroom is not running: it shut down cleanly at ")


@pytest.mark.slow
@pytest.mark.real
def test_what_why_advises_about_a_model_works(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    daemon = make_daemon(furnished, GREENROOM_MEMORY_BUDGET=SMALL).start()
    assert daemon.run("tag", str(smollm2_gguf), "smollm2").returncode == 0
    assert daemon.chat("smollm2").status == 507
    assert "smollm2 was refused at" in why(daemon)

    follow(daemon, advised(daemon, "smollm2", "To let engines use more memory"))
    assert daemon.chat("smollm2").status == 200
    told = why(daemon, "daemon")
    assert "memory_budget was 300 MB (environment GREENROOM_MEMORY_BUDGET), now" in told

    (engine,) = daemon.engines()
    os.kill(engine["pid"], signal.SIGKILL)
    until(lambda: daemon.events("load_failed"))
    assert "The engine of smollm2 stopped working at" in why(daemon)
    follow(daemon, advised(daemon, "smollm2", "To try again"))
    assert "All is well: smollm2 is loaded" in why(daemon)

    follow(daemon, advised(daemon, "smollm2", "To unload it"))
    until(lambda: not daemon.engines())
    follow(daemon, advised(daemon, "smollm2", "To load it again"))
    assert why(daemon, "smollm2").startswith("smollm2 is loaded")
    follow(daemon, advised(daemon, "llama.cpp", "To remove it"))
    follow(daemon, advised(daemon, "llama.cpp", "To install it"))
    assert why(daemon, "llama.cpp").startswith("llama.cpp")
