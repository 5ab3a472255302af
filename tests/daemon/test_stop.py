"""A stop ends within its bound, whichever part of it hangs; the other parts are ended all the same."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import Entry, Record
from greenroom.runner import daemon as daemon_module
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.daemon_lock import DaemonLock
from greenroom.runner.devices.watch import DeviceWatch
from greenroom.runner.engines.host import EngineHost
from greenroom.runner.installations.builder import Builder
from greenroom.runner.models.puller import Puller
from greenroom.runner.setting_values import ExternalBackend
from greenroom.runner.shutdown import StopDeadline
from greenroom.runner.testing import fake_backend, tiny_gguf

BOUND = 1.5
"""Seconds a stop may take in these tests."""


class FrozenJournal(MemoryJournal):
    """On a disk that answers until it is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = False
        self.thawed = threading.Event()

    def append(self, batch: Sequence[Entry], *, urgent: bool = False) -> list[Record]:
        if self.frozen:
            self.thawed.wait()
        return super().append(batch, urgent=urgent)

    def close(self) -> None:
        if self.frozen:
            self.thawed.wait()
        super().close()


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gr-") as folder:
        yield Path(folder) / "home"


@pytest.fixture
def journal() -> FrozenJournal:
    return FrozenJournal()


@pytest.fixture
def greenroom(
    home: Path, programs: Path, journal: FrozenJournal, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Greenroom]:
    monkeypatch.setattr(daemon_module, "STOP_BOUND", BOUND)
    settings = Settings(home=home, backends={"fake": ExternalBackend(binary=Path(sys.executable))})
    backends = {"fake": fake_backend(programs / "fake_engine.py")}
    greenroom = Greenroom(settings, journal=journal, backends=backends)
    greenroom.start()
    yield greenroom
    greenroom.stop()
    journal.thawed.set()


def hang(hanging: threading.Event, end: Callable[..., Any]) -> Callable[..., Any]:
    """Wait first; threads that are never ended would disturb the tests after this one."""

    def work(*arguments: Any, **more: Any) -> Any:
        hanging.wait(60)
        return end(*arguments, **more)

    return work


PARTS = {
    "the engines": (EngineHost, "shutdown"),
    "installations": (Builder, "close"),
    "pulls": (Puller, "close"),
    "the graphics devices": (DeviceWatch, "close"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_hangs_is_left_behind_and_named_and_the_others_are_ended(
    greenroom: Greenroom,
    journal: FrozenJournal,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    over = threading.Event()
    ended = []

    def noted(name: str, end: Callable[..., None]) -> Callable[..., None]:
        def work(*arguments: Any, **more: Any) -> None:
            ended.append(name)
            end(*arguments, **more)

        return work

    for name, (kind, method) in PARTS.items():
        end = getattr(kind, method)
        monkeypatch.setattr(kind, method, hang(over, end) if name == part else noted(name, end))
    began = time.monotonic()
    greenroom.stop()
    over.set()
    assert time.monotonic() - began < BOUND + 1
    assert set(ended) == set(PARTS) - {part}
    assert f"{part} did not end in time" in caplog.text
    # It is recorded that this was a stop, and the next one may begin.
    assert [*journal.read()][-1].type == "daemon_stopped"
    DaemonLock(greenroom.home).release()


def test_a_journal_on_a_frozen_disk_does_not_delay_the_stop(
    greenroom: Greenroom, journal: FrozenJournal
) -> None:
    journal.frozen = True
    began = time.monotonic()
    greenroom.stop()
    assert time.monotonic() - began < BOUND + 1
    DaemonLock(greenroom.home).release()


def test_a_scheduler_that_does_not_answer_is_overruled(
    greenroom: Greenroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    from greenroom.actors.scheduler.messages import SCHEDULER

    over = threading.Event()
    core = greenroom.system.addresses[SCHEDULER]
    monkeypatch.setattr(core, "decide", hang(over, core.decide))
    began = time.monotonic()
    greenroom.stop()
    over.set()
    assert time.monotonic() - began < BOUND + 1


def test_a_part_that_fails_to_end_does_not_stop_the_others_from_ending(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = []

    def fails() -> None:
        raise OSError("no")

    StopDeadline(1.0).all_of({"one": fails, "two": lambda: ended.append("two")})
    assert ended == ["two"]
    assert "ending one failed" in caplog.text


# the daemon's process

HANGS = """
import asyncio, os, sys, threading
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import serve_fake
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http import server

what = os.environ["HANGS"]
stop, run = Greenroom.stop, server.run
if what == "executor":
    # A call that was made off the loop, on a disk that does not answer.
    receive = server._Serving._receive
    async def receiving(self, *args):
        asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
        await receive(self, *args)
    server._Serving._receive = receiving
if what == "stop":
    Greenroom.stop = lambda self, *a, **k: threading.Event().wait()
if what == "note":
    unlink = server.Path.unlink
    def hanging(self, **more):
        threading.Event().wait() if self.name == "daemon.json" else unlink(self, **more)
    server.Path.unlink = hanging
serve_fake.run = lambda *a, **k: run(*a, **{**k, "bound": 1.0})
sys.exit(serve_fake.main())
"""


@contextlib.contextmanager
def daemon_that_hangs(programs: Path, home: Path, what: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    program = home.parent / "hangs.py"
    program.write_text(HANGS)
    argv = [sys.executable, str(program), str(home), "0", "--", "--tokens", "100000", "--token-delay", "0.01"]
    env = {"HANGS": what, "PYTHONPATH": str(programs), "PATH": "/usr/bin:/bin", "HOME": str(home.parent)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip().removeprefix("http://")
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("executor", 1),
        pytest.param("stop", 1, marks=pytest.mark.slow),
        pytest.param("note", 1, marks=pytest.mark.slow),
    ],
)
def test_the_daemons_process_ends_within_its_bound_whatever_hangs(
    programs: Path, home: Path, what: str, code: int
) -> None:
    with daemon_that_hangs(programs, home, what) as (process, address):
        assert address.startswith("127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == code


def test_a_client_that_does_not_read_does_not_delay_the_stop(programs: Path, home: Path) -> None:
    with daemon_that_hangs(programs, home, "nothing") as (process, address):
        file = tiny_gguf(home.parent / "tiny.gguf")
        connection = http.client.HTTPConnection(address, timeout=20)
        connection.request("POST", "/models/create", json.dumps({"from": f"file:{file}"}))
        assert connection.getresponse().read()
        body = json.dumps(
            {"model": f"file:{file}", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        )
        connection.request("POST", "/v1/chat/completions", body)
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: ")
        # From now on the client does not read.
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        connection.close()
