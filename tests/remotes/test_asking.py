"""Asking a backend for its models, however badly it answers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.remote_settings import RemoteBackend
from greenroom.runner.remotes import asking
from greenroom.runner.remotes.asking import ask_models
from trickle import Trickle

KEY = "sk-planted-33"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def answered(body: bytes, status: str = "200 OK", *more: str) -> bytes:
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*head, "", ""]).encode() + body


class Server:
    """Answers each connection with the same bytes."""

    def __init__(self) -> None:
        self.answer = b""
        self.asked: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:{1}/v1".format(*self._socket.getsockname())
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._socket.accept()
                with link, suppress(OSError):
                    self.asked.append(link.recv(65536))
                    link.sendall(self.answer)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def failure(server: Server) -> Callable[..., JobFailed]:
    def ask(answer: bytes, **settings: Any) -> JobFailed:
        server.answer = answer
        with pytest.raises(JobFailed) as raised:
            ask_models(RemoteBackend(url=server.url, **settings), KEY)
        assert KEY not in raised.value.failure.sentence()
        return raised.value

    return ask


def listing(*ids: Any) -> bytes:
    return answered(json.dumps({"data": [{"id": one} for one in ids]}).encode())


def test_its_models_are_those_that_are_shown_and_have_a_name(server: Server) -> None:
    server.answer = listing("b", "a", "b", KEY, "", " x", "a\nb", 7, None, ["q"], "z" * 600, "org/a:7b")
    remote = RemoteBackend(url=server.url)
    assert ask_models(remote, KEY) == ("b", "a", "org/a:7b")
    assert f"Authorization: Bearer {KEY}".encode() in server.asked[0]
    assert b"GET /v1/models HTTP/1.1" in server.asked[0]
    assert ask_models(RemoteBackend(url=server.url, models=("org/*", "b")), "") == ("b", "org/a:7b")
    assert b"Authorization" not in server.asked[1]
    server.answer = listing(*(f"m{number}" for number in range(5000)))
    assert len(ask_models(remote, KEY)) == 1000


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (answered(b"{}", "401 Unauthorized"), "key_refused", "it requires a key"),
        (answered(b"{}", "404 Not Found"), "no_models", "/v1/models"),
        (answered(b"{}", "503 Busy"), "failing", "status 503"),
        (answered(b"", "302 Found", "Location: https://else.example/x?key=1"), "redirected", "https://else"),
        (answered(b"<html>"), "no_models", "not a list of models"),
        (answered(b'{"data": [1]}'), "no_models", "not a list of models"),
        (answered(b'{"data": ' + b"[" * 100_000), "no_models", "not a list of models"),
        (answered(b"\xff\xfe"), "no_models", "not a list of models"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no_models", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, "no_models", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "no_models", "not a list of models"),
        (CHUNKED + b"-5\r\nabc\r\n", "no_models", "not HTTP"),
        (b"", "unreachable", "closed connection without response"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(
    failure: Callable[..., JobFailed], answer: bytes, code: str, said: str
) -> None:
    failed = failure(answer)
    assert failed.failure.code == code
    assert said in failed.failure.message


def test_a_redirect_is_not_followed_with_the_key(server: Server, failure: Callable[..., JobFailed]) -> None:
    other = Server()
    try:
        failure(answered(b"", "307 Temporary Redirect", f"Location: {other.url}/models"))
        assert not other.asked
    finally:
        other.close()


def test_a_list_without_an_end_is_read_to_a_limit(
    failure: Callable[..., JobFailed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "BYTES", 5000)
    endless = b'HTTP/1.1 200 OK\r\n\r\n{"data": [' + b'{"id": "a"},' * 2000
    assert "has more than" in failure(endless).failure.message


@pytest.mark.parametrize("hang", ["says nothing", "trickles its head", "trickles its body"])
def test_one_that_never_gets_to_an_end_is_given_up(hang: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "WITHIN", 0.3)
    server = Trickle(hang)
    try:
        with pytest.raises(JobFailed) as raised:
            ask_models(RemoteBackend(url=f"http://{server.host}"), KEY)
    finally:
        server.close()
    assert raised.value.failure.code in ("too_slow", "unreachable")
    assert server.left.acquire(timeout=5), "its connection is closed"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1", "connection refused"),
        ("http://no-such-host.invalid", "its name cannot be resolved"),
        ("unix:/nowhere/engine.sock", "no such file"),
    ],
)
def test_one_that_is_not_there_is_unreachable(url: str, said: str) -> None:
    with pytest.raises(JobFailed) as raised:
        ask_models(RemoteBackend(url=url), "")
    assert (raised.value.failure.code, raised.value.failure.kind) == ("unreachable", "transient")
    assert said in raised.value.failure.message


def test_a_plain_server_is_no_tls_server(server: Server) -> None:
    server.answer = listing("a")
    with pytest.raises(JobFailed) as raised:
        ask_models(RemoteBackend(url=server.url.replace("http:", "https:")), KEY)
    assert raised.value.failure.code == "not_trusted"
    assert KEY.encode() not in b"".join(server.asked)


def test_a_certificate_file_that_is_missing_is_named(tmp_path: Path, server: Server) -> None:
    remote = RemoteBackend(url=server.url.replace("http:", "https:"), ca=tmp_path / "ca.pem")
    with pytest.raises(JobFailed) as raised:
        ask_models(remote, KEY)
    assert "no such file" in raised.value.failure.message
