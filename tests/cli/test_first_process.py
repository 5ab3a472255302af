"""The daemon as the first process of a container."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process 1 (Linux)")

# A child of ours whose own children are orphaned to it, as those of process 1 are.
PROGRAM = """
import ctypes, os, signal, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
from greenroom.runner.cli.first_process import go_on_below
go_on_below()
got = []
signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
signal.signal(signal.SIGHUP, lambda number, _: got.append(number))
print(os.getpid(), os.getppid(), flush=True)
for line in sys.stdin:
    if line == "orphan\\n":
        if os.fork() == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.wait()
    print(sorted(got), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(7)
"""


class First:
    """A process that looks after the one below it."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.below, self.above = map(int, self.process.stdout.readline().split())

    def say(self, word: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def zombies(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(") ")[2].split()
                except OSError:
                    continue
                if fields[0] == "Z" and int(fields[1]) == self.above:
                    found.append(int(entry.name))
        return found


@pytest.fixture
def first() -> Iterator[First]:
    first = First("")
    yield first
    first.process.kill()
    first.process.communicate(timeout=10)


def test_the_first_process_reaps_orphans(first: First) -> None:
    assert first.above == first.process.pid
    for _ in range(5):
        first.say("orphan")
    until(lambda: first.zombies() == [])
    assert Path(f"/proc/{first.below}").exists()


def test_signals_reach_the_daemon(first: First) -> None:
    first.process.send_signal(signal.SIGHUP)
    first.process.send_signal(signal.SIGTERM)
    until(lambda: first.say("what came?") == str([1, 15]))


@pytest.mark.parametrize(("how", "code"), [("", 7), ("killed", 128 + signal.SIGKILL)])
def test_the_first_process_ends_as_the_daemon_does(how: str, code: int) -> None:
    first = First(how)
    first.process.communicate(timeout=10)
    assert first.process.returncode == code


@pytest.mark.slow
@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None, reason="makes a process namespace (root, unshare)"
)
def test_a_real_daemon_as_process_1_stops_in_order(tmp_path: Path) -> None:
    home = tmp_path / "home"
    greenroom = [sys.executable, "-m", "greenroom.runner.cli", "--home", str(home)]
    serve = [*greenroom, "serve", "--port", "0", "--install-policy", "never"]
    argv = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *serve]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("Greenroom listens on" in line for line in process.stderr)
        (below,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(below), signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(30) == 0, rest
    assert "stopping: SIGTERM" in rest
