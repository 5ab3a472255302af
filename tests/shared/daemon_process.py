"""The process of a daemon: its environment, its log, and the address where it listens."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waiting import BOUND

PROGRAMS = Path(__file__).parents[1] / "programs"


def without_settings(*more: str) -> dict[str, str]:
    """The environment without settings of Greenroom, and without what begins with one of `more`."""
    prefixes = ("GREENROOM_", "MODEL_RUNNER_", *more)
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


class Forks:
    """The program that forks daemons, `fork_daemons.py`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / "fork_daemons.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._process.communicate)

    def ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


@functools.cache
def forks() -> Forks:
    """This test process's own, from the first daemon on."""
    return Forks()


class ForkedDaemon:
    """A daemon that is a fork, with what tests use of `Popen`."""

    def __init__(self, program: str, argv: Sequence[str], env: dict[str, str], log: Path) -> None:
        order = {"program": program, "argv": [*argv], "env": env, "log": str(log)}
        self.pid: int = forks().ask(**order)["pid"]
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = forks().ask(poll=self.pid)["status"]
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Its exit status, negative for the signal that ended it. Raises TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"the daemon {self.pid}", timeout)
            time.sleep(0.02)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass
class DaemonProcess:
    """A data directory, and the daemon that runs on it at the moment."""

    home: Path
    process: subprocess.Popen[bytes] | ForkedDaemon | None = field(default=None, kw_only=True)
    started: list[subprocess.Popen[bytes] | ForkedDaemon] = field(default_factory=list, kw_only=True)
    """This process and those before it."""
    url: str = field(default="", kw_only=True)

    def launch(self, argv: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start it by its command line and do not wait."""
        self._forget_address()
        with self._log.open("ab") as log:
            process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.process = process
        self.started.append(process)
        return process

    def fork(self, program: str, *argv: str, env: dict[str, str] | None = None) -> ForkedDaemon:
        """Start it as a fork that runs a program of `tests/programs`, and do not wait."""
        self._forget_address()
        env = without_settings() if env is None else env
        process = ForkedDaemon(program, [str(self.home), *argv], env, self._log)
        self.process = process
        self.started.append(process)
        return process

    def listens(self) -> bool:
        """Whether it has written down its address, which is `url` from then on."""
        assert self.running.poll() is None, self.log()
        return self.has_address()

    def has_address(self) -> bool:
        """The same of a daemon that may have died since."""
        try:
            self.url = json.loads((self.home / "daemon.json").read_text())["url"]
        except FileNotFoundError:
            return False
        return True

    @property
    def running(self) -> subprocess.Popen[bytes] | ForkedDaemon:
        """The process, which a test that asks for it has started."""
        assert self.process is not None
        return self.process

    def send_kill(self) -> subprocess.Popen[bytes] | ForkedDaemon:
        """Kill it and do not wait."""
        self.running.kill()
        return self.running

    def log(self) -> str:
        """What it has written."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def end(self) -> None:
        """End what runs in order, or kill it when that takes too long."""
        for process in self.started:
            process.terminate()
            try:
                process.wait(BOUND)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(BOUND)

    def _forget_address(self) -> None:
        (self.home / "daemon.json").unlink(missing_ok=True)

    @property
    def _log(self) -> Path:
        return self.home.parent / f"{self.home.name}.log"
