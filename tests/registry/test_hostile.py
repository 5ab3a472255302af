"""A registry that means harm: everything it sends has a bound, and so has every wait for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.sources import PackageSources, Setting
from greenroom.runner.installations.web import Web
from greenroom.runner.models.references import Reference
from greenroom.runner.registry import credentials
from greenroom.runner.registry.client import Registry
from greenroom.runner.registry.credentials import credentials_for

Answer = Callable[[socket.socket, bytes], None]


class Server:
    """Answers each request with whatever it was told to."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._answer(connection, connection.recv(65_536))


def headers(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(1_000_000):
        connection.sendall(b"X-%d: %b\r\n" % (number, b"x" * 1_000))


def one_header(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for _number in range(100_000):
        connection.sendall(b"x" * 10_000)


def redirects(connection: socket.socket, request: bytes) -> None:
    path = request.split(b" ")[1]
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: %bx\r\nContent-Length: 0\r\n" % path)
    connection.sendall(b"Connection: close\r\n\r\n")


def elsewhere(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n")


def body(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
    for _number in range(100_000):
        connection.sendall(b" " * 100_000)


def chunks(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _number in range(100_000):
        connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def refusal(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 2000000\r\n\r\n" + b"\x1b[31m" * 400_000)


def deep(connection: socket.socket, _: bytes) -> None:
    data = b"[" * 2_000_000
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Registry]]:
    servers: list[Server] = []

    def make(answer: Answer) -> Registry:
        servers.append(Server(answer))
        web = Web(PackageSources(timeout=Setting("5", "the test")))
        return Registry(web, Reference.parse(f"{servers[-1].host}/x/y:v1"))

    yield make
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No credentials of the developer."""
    (tmp_path / "docker").mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "docker" / "config.json"


@pytest.mark.parametrize("answer", [headers, one_header, redirects, elsewhere, body, chunks, refusal])
def test_what_a_registry_sends_has_a_bound(answer: Answer, serve: Callable[[Answer], Registry]) -> None:
    registry = serve(answer)
    for ask in (lambda: registry.manifest("v1"), registry.tags):
        began = time.monotonic()
        with pytest.raises(JobFailed) as caught:
            ask()
        assert time.monotonic() - began < 20
        failure = caught.value.failure
        assert failure.code in ("unreachable", "bad_answer", "unauthorized", "refused"), failure
        assert len(failure.message) < 500
        assert len(failure.detail) <= 4_000
        assert "\x1b" not in failure.message


def test_json_without_end_is_no_list_of_tags(serve: Callable[[Answer], Registry]) -> None:
    with pytest.raises(JobFailed) as caught:
        serve(deep).tags()
    assert caught.value.failure.code == "bad_answer"


@pytest.mark.parametrize(
    "script",
    ["sleep 60", "sleep 60 & echo '{}'", "echo '[1]'", "echo nonsense", "yes '[' | head -c 200000", "exit 1"],
)
def test_a_credential_helper_that_is_no_help_delays_nothing(
    script: str, docker_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "SECONDS", 1.0)
    docker_config.write_text('{"credsStore": "test"}')
    helper = tmp_path / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DOCKER_CONFIG": str(docker_config.parent)}
    began = time.monotonic()
    found: Any = credentials_for("registry.example", environment)
    assert not found
    assert time.monotonic() - began < 10
