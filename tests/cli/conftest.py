"""A daemon that is only HTTP, and the command line as a person uses it."""

from __future__ import annotations

import io
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.cli import main as command_line
from greenroom.runner.proof import CHALLENGE, address_of, prove
from quiet_server import QuietServer

INSTANCE = "0123456789abcdef0123456789abcdef"
SECRET = b"5ec2e7" * 8


@dataclass
class Seen:
    """One request the fake daemon got."""

    method: str
    path: str
    body: Any
    headers: dict[str, str]


@dataclass
class FakeDaemon:
    """Answers routes with what a test says, and remembers what it was asked.

    A route's answer is a value (sent as JSON), a text, a `(status, value)` or `(status, value, headers)`, a
    list of lines, or a function of the request that gives one of these, or an iterator of lines that are
    sent as they come.
    """

    url: str = ""
    routes: dict[str, Any] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    def bodies(self, path: str) -> list[Any]:
        """What was sent to a path, but for the names of those who wait: they are others each time."""
        bodies = [one.body for one in self.seen if one.path == path]
        return [_unnamed(body) if isinstance(body, dict) else body for body in bodies]


def _unnamed(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "waiter"}


class Handler(BaseHTTPRequestHandler):
    daemon: FakeDaemon
    server_version = "Fake/1"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        seen = Seen(self.command, self.path, body, dict(self.headers))
        self.daemon.seen.append(seen)
        answer = self.daemon.routes.get(f"{self.command} {self.path}", (404, "404 page not found"))
        if callable(answer):
            answer = answer(seen)
        if isinstance(answer, Iterator):
            self._stream(answer)
            return
        status, value, *more = answer if isinstance(answer, tuple) else (200, answer)
        if isinstance(value, dict) and value.get("instance_id") == INSTANCE:
            challenge, here = self.headers.get(CHALLENGE, ""), self.connection.getsockname()
            value = {**value, "proof": prove(SECRET, challenge, address_of(here))}
        if isinstance(value, list) and all(isinstance(line, str) for line in value) and value:
            content = "".join(f"{line}\n" for line in value).encode()
        else:
            content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, text in more[0].items() if more else ():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, lines: Iterator[str]) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        # A client that leaves in the middle is what some tests are about.
        with suppress(ConnectionError):
            for line in lines:
                self.wfile.write(f"{line}\n".encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Tests read what they asked for, not a log."""


@pytest.fixture
def fake_server() -> QuietServer:
    """The web server of `fake_daemon`, on a free port."""
    server = QuietServer(("127.0.0.1", 0), type("OneHandler", (Handler,), {"daemon": FakeDaemon()}))
    server.daemon_threads = False
    return server


@pytest.fixture
def fake_daemon(fake_server: QuietServer) -> Iterator[FakeDaemon]:
    """A web server that answers; without a `/livez` it is a stranger."""
    server = fake_server
    daemon: FakeDaemon = server.RequestHandlerClass.daemon  # type: ignore[attr-defined]
    daemon.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield daemon
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def _listening(daemon: FakeDaemon, path: Path) -> Iterator[None]:
    class Server(socketserver.ThreadingUnixStreamServer):
        def get_request(self) -> Any:
            connection, _ = super().get_request()
            return connection, ("socket", 0)

    handler = type("SocketHandler", (Handler,), {"daemon": daemon})
    with Server(str(path), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.fixture
def listening() -> Callable[[FakeDaemon, Path], Any]:
    """Have a fake daemon answer at a socket file while a `with` block runs."""
    return _listening


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory of our own, and an environment without the user's settings."""
    for name in list(os.environ):
        if name.startswith(("GREENROOM_", "MODEL_RUNNER_")) and name != "GREENROOM_TEST_CACHE":
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("GREENROOM_HOME", str(folder))
    return folder


@pytest.fixture
def unused_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def our_daemon(fake_daemon: FakeDaemon, home: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    """The fake daemon proves to be the one of our data directory, and is ready."""
    (home / "secret").write_bytes(SECRET)
    identity = {
        "status": "ok",
        "instance_id": INSTANCE,
        "pid": os.getpid(),
        "version": "9.9",
        "home": str(home),
    }
    fake_daemon.routes["GET /livez"] = identity
    fake_daemon.routes["GET /readyz"] = {"status": "ok"}
    fake_daemon.routes["GET /jobs"] = []
    monkeypatch.setenv("GREENROOM_PORT", fake_daemon.url.rsplit(":", 1)[1])
    return fake_daemon


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


class Text(io.StringIO):
    """Standard input that is a pipe, or the end of one."""

    def fileno(self) -> int:
        raise OSError("no descriptor")


@pytest.fixture
def greenroom(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def run(*arguments: str, stdin: str = "") -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdin", Text(stdin))
        with redirect_stdout(out), redirect_stderr(err):
            code = command_line.run(list(arguments))
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def greenroom_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command as a person does: a process of its own."""

    def run(*arguments: str, timeout: float = 60, **more: Any) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "greenroom.runner.cli", *arguments]
        more.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, **more)

    return run
