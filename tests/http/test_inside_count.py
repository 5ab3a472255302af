"""`inside` is 0 only when no engine still works for a client that has left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from waiting import until_async


@pytest.fixture
def at_work(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the engine computes, as it is looked at; one item, to be changed."""
    works = [True]
    monkeypatch.setattr("greenroom.runner.http.admission.wants_to_work", lambda _: works[0])
    return works


async def _leave_a_stream(server: Any) -> None:
    async with server.chat(stream=True) as response:
        await response.content.readuntil(b"word1 ")
        response.close()


async def test_the_last_request_to_leave_counts_until_the_engine_is_idle(
    open_server: Any, at_work: list[bool]
) -> None:
    server = await open_server("--tokens", "1000", "--token-delay", "0.01")
    await _leave_a_stream(server)
    await asyncio.sleep(0.3)
    assert server.inside() == 1
    at_work[0] = False
    await until_async(lambda: server.inside() == 0)


async def test_a_request_served_after_that_can_be_the_last_too(open_server: Any, at_work: list[bool]) -> None:
    server = await open_server("--tokens", "1000", "--token-delay", "0.01")
    staying = asyncio.create_task(server.stream(max_tokens=40))
    await until_async(lambda: server.inside() == 1)
    await _leave_a_stream(server)
    await until_async(lambda: server.inside() == 1)
    assert (await staying)[0] == 200
    await asyncio.sleep(0.2)
    assert server.inside() == 1
    at_work[0] = False
    await until_async(lambda: server.inside() == 0)


async def test_a_place_is_given_back_though_the_front_door_closes_as_its_client_leaves(
    open_server: Any,
) -> None:
    server = await open_server()
    door, left = server.context, []
    door.keep(asyncio.sleep(60), then=lambda: left.append("the gate"))
    await door.close()
    assert left == ["the gate"]


async def test_a_request_with_a_complete_answer_leaves_at_once(open_server: Any, at_work: list[bool]) -> None:
    server = await open_server("--tokens", "2")
    for stream in (True, False):
        async with server.chat(stream=stream) as response:
            await response.read()
    await until_async(lambda: server.inside() == 0)


async def test_a_place_is_not_kept_forever(
    open_server: Any, at_work: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.runner.http.admission.LONGEST", 0.3)
    server = await open_server("--tokens", "1000", "--token-delay", "0.01")
    await _leave_a_stream(server)
    await until_async(lambda: server.inside() == 0)
