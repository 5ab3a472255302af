"""A server that is no Greenroom, or lies: each call of a client raises an error of ours."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenroom.runner import Client, GreenroomError, connect

VALUES = (
    b'"x"',
    b"[1]",
    b"[null]",
    b"[[]]",
    b"{}",
    b'{"data":[{"index":0,"embedding":[null]}]}',
    b"[" * 100_000,
    b"\xff",
    b"9" * 5000,
    b'{"unknown":1}',
    b'[{"job":"pull/x","layer":"a"}]',
    b'{"config":"x"}',
    b'{"type":"progress","layer":"x"}',
    b'{"type":"progress","total":"x"}',
    b'{"type":"error","retry_after":"x"}',
    b'{"type":"success","installation":"x"}',
    b'{"engine_id":1}',
    b'{"engine_id":"a","backend":"b","socket":"' + b"x" * 5000 + b'"}',
)
EVENTS = (
    b"1",
    b'{"choices":1}',
    b'{"choices":[1]}',
    b'{"choices":[{"delta":1}]}',
    b'{"choices":[{"delta":{"tool_calls":[{"index":"x"}]}}]}',
    b'{"choices":[{"delta":{"tool_calls":[{"function":"x"}]}}]}',
    b'{"usage":1}',
    b'{"error":{"retry_after":"x"}}',
    b"[" * 100_000,
)
HEADS = (
    b"",
    b"HTTP/1.1 \xb2\xb2\xb2 x\r\n\r\n",
    b"HTTP/1.1 " + b"2" * 5000 + b" x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n",
)


def answer(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


ANSWERS = (
    *(answer(value + b"\n", status) for value in VALUES for status in (200, 500)),
    *(answer(b"data: " + event + b"\n\n") for event in EVENTS),
    *HEADS,
)


class Liar:
    """Answers every request with `says`."""

    def __init__(self, path: Path) -> None:
        self.says = b""
        self.url = f"unix:{path}"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(50)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, connection.makefile("rb") as request:
                if not (line := request.readline()):
                    return
                length = 0
                while line.strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                    line = request.readline()
                request.read(length)
                connection.sendall(self.says)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@pytest.fixture
def liar(short_path: Path) -> Iterator[Liar]:
    liar = Liar(short_path / "s")
    yield liar
    liar.close()


def enter(client: Client) -> None:
    with client.engine("x"):
        pass


CALLS: tuple[Callable[[Client], object], ...] = (
    lambda client: client.models(),
    lambda client: client.ps(),
    lambda client: client.chat("x", "y"),
    lambda client: client.embed("x", "y"),
    lambda client: client.pull("x"),
    lambda client: client.install("x"),
    lambda client: client.unload("x"),
    lambda client: client.why("x"),
    lambda client: list(itertools.islice(client.progress("x"), 1)),
    enter,
)


def test_whatever_a_server_answers_the_error_is_ours(liar: Liar) -> None:
    client, refused = connect(liar.url), 0
    for liar.says in ANSWERS:
        for call in CALLS:
            try:
                call(client)
            except GreenroomError:
                refused += 1
    assert refused > 300


def test_the_same_in_asyncio(liar: Liar) -> None:
    async def all_refused() -> int:
        client, refused = connect(liar.url).in_asyncio(), 0
        for liar.says in ANSWERS:
            try:
                async with client.engine("x"):
                    pass
            except GreenroomError:
                refused += 1
        return refused

    assert asyncio.run(all_refused()) == len(ANSWERS)


def test_a_line_that_never_ends_is_not_kept_for_ever(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.runner.client.wire.BODY_LINE_LIMIT", 1000)
    liar.says = b"HTTP/1.1 200 X\r\n\r\n" + b"data: " + b"x" * 2000
    with pytest.raises(GreenroomError, match="a line never ends"):
        connect(liar.url).chat("x", "y")
