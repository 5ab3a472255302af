"""More clients than descriptors: who asks nothing gives way, and the daemon never runs out."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from greenroom.runner.descriptors import connections_within
from greenroom.runner.http.accepting import Connections
from greenroom.runner.http.aiohttp_adapter import watch

BOUND = 30.0


class Limited:
    """A daemon that may have so many files open, and no more."""

    def __init__(self, program: Path, home: Path, most_files: int) -> None:
        self.process = subprocess.Popen(
            [
                *("sh", "-c", f'ulimit -n {most_files}; exec "$@"', "sh"),
                *(sys.executable, str(program), str(home), "0"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip().removeprefix("http://")

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.address, timeout=BOUND)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Accept": "application/json"})
            answer = connection.getresponse()
            lines = answer.read().strip().splitlines()
        return answer.status, json.loads(lines[-1]) if lines else None

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@pytest.fixture
def limited(programs: Path, short_path: Path) -> Iterator[Callable[[int], Limited]]:
    made: list[Limited] = []

    def make(most_files: int) -> Limited:
        made.append(Limited(programs / "serve_fake.py", short_path / "home", most_files))
        return made[-1]

    yield make
    for daemon in made:
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(BOUND) == 0
        assert daemon.process.stdout is not None
        daemon.process.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc (Linux)")
@pytest.mark.parametrize(
    ("most_files", "clients"), [(256, 400), pytest.param(1024, 1224, marks=pytest.mark.slow)]
)
def test_idle_connections_beyond_the_limit_of_open_files_do_not_block_requests(
    limited: Callable[[int], Limited],
    short_path: Path,
    make_gguf: Callable[[Path], Path],
    most_files: int,
    clients: int,
) -> None:
    daemon = limited(most_files)
    file = make_gguf(short_path / "tiny.gguf")
    host, port = daemon.address.split(":")
    with contextlib.ExitStack() as stack:
        for number in range(clients):
            one = stack.enter_context(socket.create_connection((host, int(port)), BOUND))
            if number % 2:
                # Half of them have asked something once, half never say a word.
                one.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # A pull, an engine's start and an answer need descriptors, and find them.
        assert daemon.ask("POST", "/models/create", {"from": f"file:{file}"})[0] == 200
        chat = {"model": f"file:{file}", "messages": [{"role": "user", "content": "hi"}]}
        assert daemon.ask("POST", "/v1/chat/completions", chat)[0] == 200
        assert daemon.ask("GET", "/readyz") == (200, {"status": "ok"})
        assert daemon.open_files() < most_files - 32


def test_clients_get_what_is_left_of_the_limit_after_the_reserve() -> None:
    assert connections_within(256, 40) == 76
    assert connections_within(1024, 40) == 460
    assert connections_within(65_536, 40) == 4_096
    assert connections_within(64, 40) == 8


class SmallServer:
    """A front door with three places, whose only route answers when the test allows it."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self.connections = Connections(self.listener, 3)
        app = web.Application()
        watch(app, self.connections.begin, self.connections.end)
        app.router.add_get("/wait", self._wait)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def _wait(self, request: web.Request) -> web.Response:
        await self.answer.wait()
        return web.Response(text="done")

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return reader, writer


@pytest.fixture
async def small() -> AsyncIterator[SmallServer]:
    small = SmallServer()
    await small.runner.setup()
    server = small.runner.server
    assert server is not None
    small.connections.start(server, lambda: server.connections)
    yield small
    await small.connections.stop()
    await small.runner.cleanup()


async def test_when_all_places_are_in_use_newcomers_wait_and_are_then_refused_with_a_sentence(
    small: SmallServer,
) -> None:
    inside = [await small.client() for _ in range(3)]
    reader, _ = late = await small.client()
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), BOUND)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in head
    assert json.loads(await reader.read())["error"]["code"] == "too_many_connections"
    # The requests inside have lost nothing, and their places become free.
    small.answer.set()
    for one, _ in inside:
        assert (await one.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await one.readexactly(4) == b"done"
    again = await small.client()
    assert (await asyncio.wait_for(again[0].readuntil(b"\r\n\r\n"), BOUND)).startswith(b"HTTP/1.1 200 ")
    for _, writer in (*inside, late, again):
        writer.close()


async def test_a_client_that_waits_for_a_place_is_admitted_when_another_leaves(small: SmallServer) -> None:
    inside = [await small.client() for _ in range(3)]
    late = await small.client()
    inside[0][1].close()
    small.answer.set()
    assert (await asyncio.wait_for(late[0].readuntil(b"\r\n\r\n"), BOUND)).startswith(b"HTTP/1.1 200 ")
    for _, writer in (*inside, late):
        writer.close()


async def test_a_system_without_descriptors_is_asked_again(
    small: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, iter((24, 23, 105))

    async def failing(listener: socket.socket) -> Any:
        client = await accept(listener)
        if (number := next(failures, 0)) != 0:
            client[0].close()
            raise OSError(number, os.strerror(number))
        return client

    monkeypatch.setattr(type(loop), "sock_accept", lambda _, listener: failing(listener), raising=False)
    small.answer.set()
    ends = []
    for _ in range(6):
        reader, writer = await small.client()
        with contextlib.suppress(ConnectionError):
            ends.append(await asyncio.wait_for(reader.read(12), BOUND))
        writer.close()
    assert ends[-1] == b"HTTP/1.1 200"
