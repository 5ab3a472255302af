"""The daemon's loop: real processes, real signals."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class Daemon:
    def __init__(self, program: Path, home: Path, *arguments: str) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, str(program), str(home), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline().strip()
        """Its URL, or what it could not do."""

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.said + path, timeout=10) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            self.said + path, json.dumps(body).encode(), {"Accept": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=20)

    def is_open(self) -> bool:
        """Whether its front door still accepts connections."""
        host, _, port = self.said.removeprefix("http://").rpartition(":")
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port)), 5):
            return True
        return False

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code, and what it wrote to standard error."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


Start = Callable[..., Daemon]


@pytest.fixture
def start(programs: Path, short_path: Path) -> Iterator[Start]:
    made: list[Daemon] = []

    def make(*arguments: str, home: str = "home") -> Daemon:
        made.append(Daemon(programs / "serve_fake.py", short_path / home, *arguments))
        return made[-1]

    yield make
    for daemon in made:
        if daemon.process.poll() is None:
            daemon.process.kill()
        daemon.process.communicate(timeout=30)


def test_daemon_json_exists_as_long_as_the_daemon_runs(start: Start) -> None:
    daemon = start("0")
    note = json.loads((daemon.home / "daemon.json").read_text())
    live = daemon.get("/livez")
    assert note["url"] == daemon.said
    assert note["pid"] == live["pid"] == daemon.process.pid
    assert note["instance_id"] == live["instance_id"]
    assert note["version"] == live["version"]
    assert note["started_at"] > 1.7e9
    assert daemon.get("/readyz") == {"status": "ok"}
    code, errors = daemon.end()
    assert (code, errors) == (0, "")
    assert not (daemon.home / "daemon.json").exists()


def test_a_daemon_stops_on_request(start: Start) -> None:
    daemon = start("0")
    assert daemon.post("/daemon/stop", {}).status == 202
    assert daemon.process.wait(20) == 0


def test_a_second_daemon_for_the_same_data_directory_ends_and_names_the_first(start: Start) -> None:
    first = start("0")
    port = first.said.rpartition(":")[2]
    for second in (start("0"), start(port)):
        assert second.said.startswith("HomeLocked: ")
        assert str(first.process.pid) in second.said
        assert second.process.wait(10) == 9
    assert first.get("/readyz") == {"status": "ok"}


def test_a_taken_port_is_an_error_and_nothing_has_been_started(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        daemon = start(str(port))
        assert daemon.said.startswith("PortTaken: ")
        assert str(port) in daemon.said
        assert daemon.process.wait(10) == 9
        assert not (daemon.home / "journal.db").exists()


@pytest.mark.parametrize("bind", ["0.0.0.0", "192.0.2.1", "nowhere.invalid"])
def test_an_address_that_others_can_reach_is_refused(start: Start, bind: str) -> None:
    daemon = start("0", bind)
    assert daemon.said.startswith("BadBind: ")
    assert not (daemon.home / "journal.db").exists()


def test_a_daemon_can_listen_on_the_ipv6_loopback(start: Start) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    daemon = start("0", "::1")
    assert daemon.said.startswith("http://[::1]:")
    assert daemon.get("/livez")["status"] == "ok"


def test_a_stream_under_way_ends_with_a_sentence_when_the_daemon_stops(
    start: Start, short_path: Path, make_gguf: Callable[[Path], Path]
) -> None:
    daemon = start("0", "--", "--tokens", "100000", "--token-delay", "0.01")
    file = make_gguf(short_path / "tiny.gguf")
    daemon.post("/models/create", {"from": f"file:{file}"}).read()
    body = {"model": f"file:{file}", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with daemon.post("/v1/chat/completions", body) as answer:
        assert answer.readline().startswith(b"data: ")
        daemon.process.send_signal(signal.SIGINT)
        lines = [line.decode().strip() for line in answer]
    events = [line for line in lines if line.startswith("data: ")]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "stopping"
    assert daemon.process.wait(20) == 0


def test_a_second_signal_ends_the_daemon_at_once(
    start: Start, short_path: Path, make_gguf: Callable[[Path], Path]
) -> None:
    daemon = start("0", "--", "--tokens", "100000", "--token-delay", "0.01")
    file = make_gguf(short_path / "tiny.gguf")
    daemon.post("/models/create", {"from": f"file:{file}"}).read()
    body = {"model": f"file:{file}", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with daemon.post("/v1/chat/completions", body) as answer:
        assert answer.readline().startswith(b"data: ")
        daemon.process.send_signal(signal.SIGINT)
        while daemon.is_open():
            answer.readline()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(5) == 128 + signal.SIGTERM


def test_a_new_daemon_starts_after_a_killed_one(start: Start) -> None:
    first = start("0")
    instance = first.get("/livez")["instance_id"]
    first.process.kill()
    first.process.wait(10)
    second = start("0")
    assert second.get("/livez")["instance_id"] == instance
    assert json.loads((second.home / "daemon.json").read_text())["pid"] == second.process.pid
