"""The process of a daemon: its environment, its log, and the address where it listens."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from waiting import BOUND


def without_settings(*more: str) -> dict[str, str]:
    """The environment without settings of Greenroom, and without what begins with one of `more`."""
    prefixes = ("GREENROOM_", "MODEL_RUNNER_", *more)
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


@dataclass
class DaemonProcess:
    """A data directory, and the daemon that runs on it at the moment."""

    home: Path
    process: subprocess.Popen[bytes] | None = field(default=None, kw_only=True)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list, kw_only=True)
    """This process and those before it."""
    url: str = field(default="", kw_only=True)

    def launch(self, argv: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start it and do not wait."""
        (self.home / "daemon.json").unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.started.append(self.process)
        return self.process

    def listens(self) -> bool:
        """Whether it has written down its address, which is `url` from then on."""
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            self.url = json.loads((self.home / "daemon.json").read_text())["url"]
        except FileNotFoundError:
            return False
        return True

    def send_kill(self) -> subprocess.Popen[bytes]:
        """Kill it and do not wait."""
        assert self.process is not None
        self.process.kill()
        return self.process

    def log(self) -> str:
        """What it has written."""
        return self._log.read_text()

    def end(self) -> None:
        """End what runs in order, or kill it when that takes too long."""
        for process in self.started:
            process.terminate()
            try:
                process.wait(BOUND)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(BOUND)

    @property
    def _log(self) -> Path:
        return self.home.parent / f"{self.home.name}.log"
