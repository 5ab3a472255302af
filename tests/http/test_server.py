"""The daemon's loop: real processes, real signals."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import stat
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon_process import DaemonProcess, without_settings
from waiting import BOUND, until


class Daemon(DaemonProcess):
    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Accept": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=20)

    def is_open(self) -> bool:
        """Whether its front door still accepts connections."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port)), 5):
            return True
        return False


Start = Callable[..., Daemon]


@pytest.fixture
def begin(short_path: Path) -> Iterator[Start]:
    """`begin(port, bind, "--", flags of the engine)` does not wait."""
    made: list[Daemon] = []

    def make(*arguments: str) -> Daemon:
        made.append(Daemon(short_path / "home"))
        made[-1].fork("serve_fake", *arguments)
        return made[-1]

    yield make
    for daemon in made:
        daemon.send_kill().wait(BOUND)


@pytest.fixture
def start(begin: Start) -> Start:
    """The same, and waits until the daemon listens."""

    def make(*arguments: str) -> Daemon:
        daemon = begin(*arguments)
        until(daemon.listens)
        return daemon

    return make


@pytest.fixture
def refused(begin: Start) -> Callable[..., str]:
    """What a daemon says that cannot start."""

    def make(*arguments: str) -> str:
        daemon = begin(*arguments)
        assert daemon.running.wait(BOUND) == 9
        return daemon.log().splitlines()[-1]

    return make


def test_daemon_json_exists_as_long_as_the_daemon_runs(start: Start) -> None:
    daemon = start("0")
    note = json.loads((daemon.home / "daemon.json").read_text())
    live = daemon.get("/livez")
    assert note["url"] == daemon.url
    assert note["pid"] == live["pid"] == daemon.running.pid
    assert note["instance_id"] == live["instance_id"]
    assert note["version"] == live["version"]
    assert note["started_at"] > 1.7e9
    assert daemon.get("/readyz") == {"status": "ok"}
    daemon.end()
    assert (daemon.running.returncode, daemon.log()) == (0, f"{daemon.url}\n")
    assert not (daemon.home / "daemon.json").exists()


def test_a_daemon_stops_on_request(start: Start) -> None:
    daemon = start("0")
    assert daemon.post("/daemon/stop", {}).status == 202
    assert daemon.running.wait(BOUND) == 0


def test_a_second_daemon_for_the_same_data_directory_ends_and_names_the_first(
    start: Start, refused: Callable[..., str]
) -> None:
    first = start("0")
    port = first.url.rpartition(":")[2]
    for said in (refused("0"), refused(port)):
        assert said.startswith("HomeLocked: ")
        assert str(first.running.pid) in said
    assert first.get("/readyz") == {"status": "ok"}


def test_a_taken_port_is_an_error_and_nothing_has_been_started(
    refused: Callable[..., str], short_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused(str(port))
        assert said.startswith("PortTaken: ")
        assert str(port) in said
        assert not (short_path / "home" / "journal.db").exists()


@pytest.mark.parametrize("bind", ["0.0.0.0", "192.0.2.1", "nowhere.invalid"])
def test_an_address_that_others_can_reach_is_refused(
    refused: Callable[..., str], short_path: Path, bind: str
) -> None:
    assert refused("0", bind).startswith("BadBind: ")
    assert not (short_path / "home" / "journal.db").exists()


def test_a_daemon_can_listen_on_the_ipv6_loopback(start: Start) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    daemon = start("0", "::1")
    assert daemon.url.startswith("http://[::1]:")
    assert daemon.get("/livez")["status"] == "ok"


@pytest.fixture
def endless(start: Start, short_path: Path, make_gguf: Callable[[Path], Path]) -> tuple[Any, Any]:
    """A daemon, and the answer to a request that it streams without end; its first event was read."""
    daemon = start("0", "--", "--tokens", "100000", "--token-delay", "0.01")
    file = make_gguf(short_path / "tiny.gguf")
    daemon.post("/models/create", {"from": f"file:{file}"}).read()
    body = {"model": f"file:{file}", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    stream = daemon.post("/v1/chat/completions", body)
    assert stream.readline().startswith(b"data: ")
    return daemon, stream


def test_a_stream_under_way_ends_with_a_sentence_when_the_daemon_stops(endless: tuple[Any, Any]) -> None:
    daemon, stream = endless
    with stream as answer:
        daemon.running.send_signal(signal.SIGINT)
        lines = [line.decode().strip() for line in answer]
    events = [line for line in lines if line.startswith("data: ")]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "stopping"
    assert daemon.running.wait(BOUND) == 0


def test_a_second_signal_ends_the_daemon_at_once(endless: tuple[Any, Any]) -> None:
    daemon, stream = endless
    with stream as answer:
        daemon.running.send_signal(signal.SIGINT)
        while daemon.is_open():
            answer.readline()
        daemon.running.send_signal(signal.SIGTERM)
        assert daemon.running.wait(BOUND) == 128 + signal.SIGTERM


def test_a_new_daemon_starts_after_a_killed_one(start: Start) -> None:
    first = start("0")
    instance = first.get("/livez")["instance_id"]
    first.send_kill().wait(BOUND)
    second = start("0")
    assert second.get("/livez")["instance_id"] == instance
    assert json.loads((second.home / "daemon.json").read_text())["pid"] == second.running.pid


def test_a_daemon_listens_on_a_unix_socket_too_and_refuses_one_that_is_taken(short_path: Path) -> None:
    path = short_path / "door.sock"
    daemon = Daemon(short_path / "home")
    try:
        daemon.fork("serve_cli", "--port", "0", "--uds", str(path), env=cli_env(short_path / "home"))
        until(daemon.listens)
        assert f"and {path}" in daemon.log()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with contextlib.closing(http.client.HTTPConnection("localhost")) as asking:
            asking.sock = socket.socket(socket.AF_UNIX)
            asking.sock.connect(str(path))
            asking.request("GET", "/livez")
            told = json.loads(asking.getresponse().read())
        assert told["instance_id"] == daemon.get("/livez")["instance_id"]
        other = Daemon(short_path / "other")
        other.fork("serve_cli", "--port", "0", "--uds", str(path), env=cli_env(short_path / "other"))
        assert other.running.wait(BOUND) == 2
        assert "Another program listens on" in other.log()
        daemon.running.terminate()
        assert daemon.running.wait(BOUND) == 0
        assert not path.exists()
    finally:
        daemon.send_kill().wait(BOUND)


def cli_env(home: Path) -> dict[str, str]:
    return {**without_settings(), "GREENROOM_HOME": str(home), "GREENROOM_INSTALL_POLICY": "never"}
