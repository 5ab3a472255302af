"""A client that stays and does not read holds its place only while no other client wants it."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import pytest

from waiting import until_async

CHAT = b'{"model": "tiny", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'


async def _stay(server: Any) -> socket.socket:
    """A client that has sent a request and reads nothing, with little room in its own system."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    host, port = server.root.split(":")
    await loop.sock_connect(client, (host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CHAT)}\r\n\r\n"
    await loop.sock_sendall(client, head.encode() + CHAT)
    return client


async def test_a_client_that_does_not_read_is_cut_off_with_a_reason_when_others_wait(
    open_server: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server("--tokens", "1000000", unread_for=0.4)
    wanted = ""
    from greenroom.runner.http.context import Context

    monkeypatch.setattr(Context, "wanted", lambda *_: wanted)
    client = await _stay(server)
    await until_async(lambda: server.inside() == 1)
    await asyncio.sleep(1.0)
    assert server.inside() == 1, "it may stay while no other client waits"
    caplog.set_level(logging.WARNING, logger="greenroom.runner.http.event_stream")
    wanted = "another request waits"
    await until_async(lambda: server.inside() == 0)
    await server.nothing_is_held()
    (told,) = [one.getMessage() for one in caplog.records if "was disconnected" in one.getMessage()]
    assert "its client read nothing" in told
    assert "another request waits" in told
    client.close()


async def test_a_client_that_reads_slowly_is_left_alone(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server("--tokens", "1000000", unread_for=1.5)
    from greenroom.runner.http.context import Context

    monkeypatch.setattr(Context, "wanted", lambda *_: "another request waits")
    client = await _stay(server)
    loop = asyncio.get_running_loop()
    end = loop.time() + 4.0
    while loop.time() < end:
        assert await loop.sock_recv(client, 16384)
        await asyncio.sleep(0.02)
    assert server.inside() == 1
    client.close()
    await server.nothing_is_held()


async def test_a_silent_engine_is_not_the_clients_fault(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server("--tokens", "3", "--first-token-delay", "1.0", unread_for=0.2)
    from greenroom.runner.http.context import Context

    monkeypatch.setattr(Context, "wanted", lambda *_: "another request waits")
    status, lines = await server.stream()
    assert (status, lines[-2]) == (200, "data: [DONE]")


async def test_a_place_is_wanted_when_a_request_waits(open_server: Any) -> None:

    server = await open_server("--load-forever")
    assert server.context.wanted("another") == ""
    task = asyncio.create_task(server.error(server.chat()))
    await until_async(lambda: server.waiting() == 1 and server.context.wanted("another"))
    assert server.context.wanted("another") == "another request waits"
    task.cancel()


async def test_a_waiting_request_gets_the_slot_of_a_client_that_does_not_read(open_server: Any) -> None:
    server = await open_server("--tokens", "1000000", backend={"slots": 1}, unread_for=0.5)
    client = await _stay(server)
    await until_async(lambda: server.inside() == 1)
    status, _ = await server.stream(max_tokens=3)
    assert status == 200
    client.close()
    await server.nothing_is_held()
