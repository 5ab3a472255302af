"""Whatever is done to a backend, and whenever the daemon is killed: status says what is on the real disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toy

PROGRAM = Path(__file__).parents[1] / "programs" / "toy_greenroom.py"

STEPS = st.one_of(
    st.sampled_from(
        ["install 1.0", "install 2.0", "repair", "uninstall", "uninstall 1.0", "rollback", "restart"]
    ),
    st.tuples(
        st.sampled_from(["install 1.0", "install 2.0", "repair", "uninstall", "uninstall 1.0"]),
        st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.8]),
    ),
)
"""A command, or one in the middle of which the daemon is killed, so many seconds after it was given."""

_RULES: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


class Daemon:
    """A process with a Greenroom in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.home = folder / "home"
        self._begin()

    def _begin(self) -> None:
        env = {**os.environ, **toy.sources(self._folder / "wheels")}
        self._process = subprocess.Popen(
            [sys.executable, PROGRAM, self.home, self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        assert self._read() == {"ready": True}

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def _give(self, command: str) -> None:
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)

    def do(self, command: str) -> Any:
        """Carry out a command; the status afterwards."""
        self._give(command)
        return self._read()

    def killed_in(self, command: str, after: float) -> None:
        """Give a command and kill the daemon; then there is another one."""
        self._give(command)
        try:
            self._process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._close()
        self._begin()

    def restart(self) -> None:
        """End it in order and begin the next one."""
        self.end()
        self._begin()

    def end(self) -> None:
        """End it in order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0
        self._close()

    def _close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def check(daemon: Daemon) -> None:
    """What the status says is what lies there, and what it calls installed starts."""
    # A job of before may still be going on: a command of the same kind waits for its end.
    status = daemon.do("status")["status"]
    while status.get("job") or status.get("retiring"):
        status = daemon.do("install 1.0" if status.get("job") else "uninstall")["status"]
    folder = daemon.home / "backends" / "toy"
    marked = {one.parent.name for one in folder.glob("*/installation.json")}
    assert {one["id"] for one in status.get("installations", ())} == marked
    current = status.get("current")
    assert (status["state"] == "installed") == bool(marked) == (current is not None)
    if current is None:
        return
    for one in status["installations"]:
        assert not one.get("broken")
        python = folder / one["id"] / "env" / "bin" / "python"
        version = "import importlib.metadata as m, toy; print(toy.VALUE, m.version('toy'))"
        said = subprocess.run([python, "-I", "-c", version], capture_output=True, text=True, check=True)
        assert said.stdout.split() == ["1", one["version"]]


def live(steps: Sequence[Any]) -> None:
    """A life, checked after each step and by another daemon in the end."""
    with tempfile.TemporaryDirectory(prefix="gr-") as name:
        folder = Path(name)
        for version in ("1.0", "2.0"):
            toy.make_wheel(folder / "wheels", version)
        daemon = Daemon(folder)
        for step in (*steps, "restart"):
            if step == "restart":
                daemon.restart()
            elif isinstance(step, tuple):
                daemon.killed_in(*step)
            else:
                answer = daemon.do(step)
                assert answer["refused"] in ("", "no_such_installation"), answer
            check(daemon)
        daemon.end()
        there = folder.glob("home/backends/toy/*")
        assert not [one for one in there if not (one / "installation.json").exists()]


def test_a_life_with_every_operation_ends_with_a_status_that_equals_the_disk() -> None:
    live(
        [
            *("install 1.0", "install 2.0", "rollback", ("install 2.0", 0.1), ("repair", 0.3)),
            *("uninstall 1.0", "uninstall"),
        ]
    )


@pytest.mark.slow
@settings(max_examples=1, derandomize=True, **_RULES)
@given(st.lists(STEPS, min_size=3, max_size=5))
def test_any_short_sequence_ends_with_a_status_that_equals_the_disk(steps: list[Any]) -> None:
    live(steps)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=40, **_RULES)
@given(st.lists(STEPS, min_size=4, max_size=14))
def test_any_sequence_ends_with_a_status_that_equals_the_disk(steps: list[Any]) -> None:
    live(steps)
