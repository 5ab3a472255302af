"""A stage for engines: an engines folder, its hosts, and what they report."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from greenroom.actors.engine_runner.events import EngineExited
from greenroom.actors.engine_runner.messages import EngineMoved
from greenroom.actors.kernel.core import Address
from greenroom.actors.progress import ProgressBoard, load_job
from greenroom.actors.reports import Happened
from greenroom.actors.values import EngineSpec
from greenroom.runner.backends.base import CommandLine, Readiness
from greenroom.runner.engines.handle import PreparedEngine
from greenroom.runner.engines.host import EngineHost

PROGRAMS = Path(__file__).resolve().parents[1] / "programs"

BOUND = 20.0

ANSWER_BOUND = 100.0
"""For an answer of a real engine on a machine that does much else."""


class Heard:
    """Remembers what a host reports, and lets a test wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.at: list[float] = []
        self.board = ProgressBoard()

    def tell(self, to: Address, report: Any) -> None:
        assert to.name.startswith("runner/")
        what = report.event if isinstance(report, Happened) else report
        one, *rest = (getattr(what, field) for field in what.__struct_fields__)
        name = type(what).__name__.removeprefix("Engine").lower()
        if isinstance(what, EngineMoved):
            latest = self.board.latest(load_job(one))
            assert latest is not None
            name, rest = "progress", [latest.phase, latest.message]
        elif isinstance(what, EngineExited) and what.exit.failure and not self._ran(one):
            name, rest = "failed", [what.exit.failure]
        with self._changed:
            self.calls.append((name, one, tuple(rest)))
            self.at.append(time.monotonic())
            self._changed.notify_all()

    def _ran(self, engine_id: str) -> bool:
        return any(call[:2] in (("spawned", engine_id), ("adopted", engine_id)) for call in self.calls)

    def wait(self, *names: str, engine_id: str | None = None, bound: float = BOUND) -> tuple[Any, ...]:
        """The arguments of the first call of one of these names."""

        def find() -> tuple[str, str, tuple[Any, ...]] | None:
            for call in self.calls:
                if call[0] in names and engine_id in (None, call[1]):
                    return call
            return None

        with self._changed:
            found = self._changed.wait_for(find, bound)
        assert found, f"none of {names} came within {bound} s; heard: {self.calls}"
        return found[2]

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls if name not in ("progress", "measured")]

    def moment(self, name: str) -> float:
        return self.at[[call[0] for call in self.calls].index(name)]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Lag:
    """How late this machine lets a thread run, at worst, while it is measured: bounds of a second hold for
    machines that run a thread at once."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)
        self._thread.start()

    def _measure(self) -> None:
        while True:
            began = time.monotonic()
            if self._done.wait(0.02):
                return
            self.worst = max(self.worst, time.monotonic() - began - 0.02)

    def allows(self, took: float, bound: float) -> bool:
        """Whether this counts as within the bound here, where engines wait for a processor as well. Ends the
        measuring."""
        self._done.set()
        self._thread.join()
        return took < 1.5 * bound + 5 * self.worst


class Stage:
    """One engines folder, its hosts, and everything needed to look at what they do."""

    started: EngineSpec
    """These three belong to the engine that a fixture has started."""
    endpoint: str
    log: Callable[[], str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: list[EngineHost] = []
        self.options: dict[str, Any] = {}
        self.readiness = Readiness()
        self.heard = Heard()
        self.alive, self.programs, self.lag = alive, PROGRAMS, Lag

    def host(self, *flags: str, heard: Heard | None = None, **options: Any) -> EngineHost:
        options = {"spare_keeper": False, "prepare": self.prepares(*flags), "grace": 30.0, **options}
        heard = heard or self.heard
        host = EngineHost(self.folder, tell=heard.tell, board=heard.board, **options)
        self.hosts.append(host)
        return host

    def prepares(self, *flags: str) -> Callable[[EngineSpec, Path], PreparedEngine]:
        """What gives a host the command line of the fake engine."""

        def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
            argv = (sys.executable, "-I", str(PROGRAMS / "fake_engine.py"), "--socket", str(socket))
            return PreparedEngine(
                command=CommandLine(argv=(*argv, *flags, *spec.flags)), readiness=self.readiness
            )

        return prepare

    def spec(self, engine_id: str = "", **fields: Any) -> EngineSpec:
        fields = {"backend": "fake", "installation_id": "i", "model_id": "m", "model_ref": "m", **fields}
        return EngineSpec(engine_id=engine_id or f"e-{secrets.token_hex(4)}", **fields)

    def forget(self) -> Heard:
        """Another listener from now on, as a restarted daemon has one."""
        self.heard = Heard()
        return self.heard

    def claim(self, engine_id: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / engine_id / "claim").read_text()))

    def request(self, endpoint: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("localhost", timeout=ANSWER_BOUND)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(ANSWER_BOUND)
        connection.sock.connect(endpoint)
        connection.request(
            "POST" if body is not None else "GET", path, json.dumps(body) if body is not None else None
        )
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, json.loads(data)

    def pids(self) -> list[int]:
        """Every engine process of this folder, and what it has started."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("GREENROOM_ENGINE_FOLDER", "").startswith(str(self.folder)):
                    found.append(process.pid)
            except (psutil.Error, OSError):
                continue
        return found

    def daemon(self, engine_id: str, *flags: str, grace: float = 30.0, die_after_claim: bool = False) -> Any:
        """A process that hosts one engine, to be killed."""
        extra = ["--die-after-claim"] if die_after_claim else []
        return subprocess.Popen(
            [
                *(sys.executable, str(PROGRAMS / "host_process.py"), str(self.folder), engine_id, str(grace)),
                *(*extra, "--", *flags),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        for host in self.hosts:
            host.shutdown()
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
