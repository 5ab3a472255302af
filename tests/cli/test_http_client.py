from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from greenroom.runner.client.daemons import Stranger, probe
from greenroom.runner.client.http_client import DaemonRequest, NobodyThere
from greenroom.runner.client.wire import BrokenOff, NotHttp

Speak = Callable[[bytes], str]


@pytest.fixture
def speak() -> Iterator[Speak]:
    """Start a program that sends these bytes to each client and closes the connection."""
    with contextlib.ExitStack() as stack:

        def start(said: bytes) -> str:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve() -> None:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(ConnectionError):
                    connection.recv(65_536)
                    connection.sendall(said)

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join, 5)
            return f"http://127.0.0.1:{listener.getsockname()[1]}"

        yield start


def ask(url: str, timeout: float = 5) -> contextlib.closing[DaemonRequest]:
    return contextlib.closing(DaemonRequest(url, "GET", "/", headers={}, timeout=timeout))


def lines(exchange: DaemonRequest) -> list[bytes]:
    return list(iter(exchange.readline, b""))


HEAD = b"HTTP/1.1 200 OK\r\nX-Name: value\r\n"


def test_a_body_of_known_length_ends_there(speak: Speak) -> None:
    with ask(speak(HEAD + b"Content-Length: 7\r\n\r\na\nbc\nd\nleftover")) as exchange:
        assert (exchange.status, exchange.reason, exchange.headers["x-name"]) == (200, "OK", "value")
        assert lines(exchange) == [b"a\n", b"bc\n", b"d\n"]
        assert exchange.read() == b""


def test_a_body_without_a_length_ends_with_the_connection(speak: Speak) -> None:
    with ask(speak(HEAD + b"\r\none\ntwo")) as exchange:
        assert lines(exchange) == [b"one\n", b"two"]


def test_lines_and_chunks_need_not_agree(speak: Speak) -> None:
    body = b"3\r\na\nb\r\n1;x=y\r\nc\r\n2\r\n\nd\r\n0\r\n\r\n"
    with ask(speak(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body)) as exchange:
        assert lines(exchange) == [b"a\n", b"bc\n", b"d"]
    with ask(speak(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body)) as exchange:
        assert exchange.read() == b"a\nbc\nd"


def test_an_interim_answer_is_passed_over(speak: Speak) -> None:
    with ask(speak(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok")) as exchange:
        assert exchange.read() == b"ok"


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 9\r\n\r\nshort",
        b"Transfer-Encoding: chunked\r\n\r\n9\r\nshort",
        b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_body_that_breaks_off_is_no_whole_answer(speak: Speak, body: bytes) -> None:
    with ask(speak(HEAD + body)) as exchange, pytest.raises(BrokenOff):
        exchange.read()


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9\r\n", b"\x00\x01\x02", b"HTTP/1.1 many OK\r\n\r\n"])
def test_what_is_not_http_is_recognised(speak: Speak, said: bytes) -> None:
    with pytest.raises(NotHttp):
        ask(speak(said))


def test_a_connection_closed_without_a_word_is_broken_off(speak: Speak) -> None:
    with pytest.raises(BrokenOff):
        ask(speak(b""))


def test_no_server_listens_on_the_port(unused_port: int) -> None:
    with pytest.raises(NobodyThere, match="connection refused"):
        ask(f"http://127.0.0.1:{unused_port}")
    assert probe(f"http://127.0.0.1:{unused_port}") is None


def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TimeoutError):
            ask(url, timeout=0.05)
        found = probe(url, patience=0.05)
    assert isinstance(found, Stranger)
    assert found.silent


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"220 mail ready\r\n", "a program that does not speak HTTP"),
        (b"", "closes connections without answering"),
        (HEAD + b"Server: nginx\r\nContent-Length: 3\r\n\r\nhey", "calling itself 'nginx', saying 'hey'"),
        (HEAD + b"Content-Length: 6\r\n\r\n<html>", "a web server with status 200"),
    ],
)
def test_a_stranger_is_described(speak: Speak, said: bytes, told: str) -> None:
    found = probe(speak(said))

    assert isinstance(found, Stranger)
    assert told in found.description
