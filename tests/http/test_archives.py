"""Archives over HTTP: a client that stalls takes no other client's place, and is disconnected."""

from __future__ import annotations

import asyncio
import tarfile
import time
from typing import Any

import pytest

from greenroom.runner.http import archives

BOUND = 20.0


def head_of(server: Any, more: str = "Transfer-Encoding: chunked\r\n") -> bytes:
    path = server.base.partition(server.root)[2]
    return f"POST {path}/models/load HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()


async def begin(
    server: Any, data: bytes = b"5\r\nhello\r\n"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*server.root.split(":"))
    writer.write(head_of(server) + b"5\r\nhello\r\n")
    await writer.drain()
    return reader, writer


async def test_archives_that_stall_do_not_block_other_clients(open_server: Any) -> None:
    server = await open_server()
    stalled = [await begin(server) for _ in range(40)]
    incoming = server.greenroom.home / "models" / "incoming"
    while len(list(incoming.iterdir())) < 4:  # noqa: ASYNC110 - no event says so
        await asyncio.sleep(0.01)
    async with asyncio.timeout(BOUND):
        for path in ("/models/tiny", "/engines/df", "/models/tiny/export", "/why/tiny"):
            async with server.get(path) as response:
                assert response.status == 200, path
                assert await response.read()
        # Clients beyond the limit are refused at once.
        async with server.session.post(server.base + "/models/load", data=b"x") as response:
            assert response.status == 503
            assert "Too many archives" in await response.text()
    for _, writer in stalled:
        writer.close()
    async with asyncio.timeout(BOUND):
        while list(incoming.iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        # Their slots are free again.
        while True:
            async with server.session.post(server.base + "/models/load", data=b"x" * 10_000) as response:
                if response.status == 422:
                    break
            await asyncio.sleep(0.05)


async def test_an_archive_that_trickles_is_ended(open_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "WINDOW", 0.3)
    server = await open_server()
    reader, writer = await begin(server)
    began = time.monotonic()

    async def trickle() -> None:
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    task = asyncio.ensure_future(trickle())
    try:
        async with asyncio.timeout(BOUND):
            answer = await reader.readuntil(b"\r\n")
    finally:
        task.cancel()
        writer.close()
    assert b" 408 " in answer
    assert time.monotonic() - began < 10
    incoming = server.greenroom.home / "models" / "incoming"
    async with asyncio.timeout(BOUND):
        while list(incoming.iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_body_that_never_arrives_does_not_block_other_clients(
    open_server: Any,
) -> None:
    server = await open_server()
    member = tarfile.TarInfo("README.md")
    member.size = 2**62
    data = member.tobuf(tarfile.GNU_FORMAT)
    async with asyncio.timeout(BOUND):
        for _ in range(8):
            async with server.session.post(server.base + "/models/load", data=data) as response:
                assert response.status == 422
        async with server.get("/models/tiny") as response:
            assert response.status == 200


async def test_a_client_that_takes_nothing_of_an_archive_is_cut_off(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "WINDOW", 0.3)
    server = await open_server()

    def endless(store: Any, model_id: str) -> tuple[int, Any]:
        return 2**40, iter(lambda: b"x" * 2**20, b"")

    monkeypatch.setattr("greenroom.runner.models.archive.export", endless)
    reader, writer = await asyncio.open_connection(*server.root.split(":"), limit=1024)
    path = server.base.partition(server.root)[2]
    writer.write(f"GET {path}/models/tiny/export HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert b"200" in await reader.readuntil(b"\r\n")

    async def take_all() -> None:
        while True:
            await reader.readexactly(1024)

    # The client takes nothing for three times as long as it may.
    await asyncio.sleep(1.0)
    async with asyncio.timeout(BOUND):
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await take_all()
    writer.close()
