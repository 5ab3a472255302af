"""Several clients on one engine: who is inside, who is queued, and who they are."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from waiting import until_async


async def test_what_an_engine_has_no_slot_for_is_queued_here_and_answered_in_turn(open_server: Any) -> None:
    server = await open_server("--tokens", "3", "--token-delay", "0.1", backend={"slots": 2})
    answers = await asyncio.gather(*(server.stream() for _ in range(12)))
    assert [status for status, _ in answers] == [200] * 12
    assert (await server.stats())["most_at_once"] == 2
    await server.nothing_is_held()


async def test_ps_names_the_slots_and_the_queue_says_whose_turn_comes(
    open_server: Any, short_path: Any
) -> None:
    gate = short_path / "go"
    server = await open_server(
        "--tokens",
        "2",
        "--hold-after-tokens",
        "1",
        "--until",
        str(gate),
        backend={"slots": 1},
        progress_after=0.1,
    )
    first = asyncio.create_task(server.stream())
    await until_async(lambda: server.inside() == 1)
    second = asyncio.create_task(server.stream())
    rows: list[Any] = []

    async def found_out() -> bool:
        nonlocal rows
        async with server.get("/engines/queue") as response:
            rows = await response.json()
        return bool(rows) and f"(process {os.getpid()})" in rows[0]["caller"]

    async with asyncio.timeout(30):
        while not await found_out():
            pass  # asking is a pause of its own
    assert (rows[0]["place"], rows[0]["phase"]) == (1, "queued")
    assert rows[0]["message"] == "queued for a slot of tiny, which has 1"
    async with server.get("/engines/ps") as response:
        (engine,) = await response.json()
    assert (engine["slots"], engine["slots_used"], engine["queue"]) == (1, 1, 1)
    (slot,) = engine["slots_taken"]
    assert slot["number"] == 0
    assert slot["request_id"].startswith("r-")
    gate.touch()
    assert [status for status, _ in await asyncio.gather(first, second)] == [200, 200]


async def test_a_client_that_leaves_the_queue_does_not_block_it(open_server: Any, short_path: Any) -> None:
    gate = short_path / "go"
    server = await open_server(
        "--tokens", "2", "--hold-after-tokens", "1", "--until", str(gate), backend={"slots": 1}
    )
    first = asyncio.create_task(server.stream())
    await until_async(lambda: server.inside() == 1)
    leaves, stays = asyncio.create_task(server.stream()), None
    await until_async(lambda: server.waiting() == 1)
    stays = asyncio.create_task(server.stream())
    await until_async(lambda: server.waiting() == 2)
    leaves.cancel()
    await until_async(lambda: server.waiting() == 1)
    gate.touch()
    assert [status for status, _ in await asyncio.gather(first, stays)] == [200, 200]
    await server.nothing_is_held()


async def test_a_request_for_several_answers_takes_as_many_slots(open_server: Any) -> None:
    server = await open_server("--tokens", "2", backend={"slots": 4})
    answers = await asyncio.gather(*(server.stream(n=4) for _ in range(3)), server.stream())
    assert [status for status, _ in answers] == [200] * 4
    assert (await server.stats())["most_at_once"] == 1


def saves_slots(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have its engine be one like llama.cpp's."""
    backend = type(server.greenroom.backends["fake"])
    monkeypatch.setattr(backend, "conversations", "slots")
    monkeypatch.setattr(backend, "keeps_prompts_of_no_slot", True)


async def test_nobody_profits_from_what_was_read_for_another(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an `id_slot`, llama.cpp looks among all prompts in memory; `cache_prompt` is about the slot."""
    server = await open_server("--echo-fields", backend={"slots": 1})
    saves_slots(server, monkeypatch)

    async def sent(owner: str, *said: str) -> set[str]:
        monkeypatch.setattr(server.context.callers, "owner_at_once", lambda _: owner)
        messages = [{"role": "user", "content": word * 300} for word in said]
        async with server.post("/v1/chat/completions", {"model": "tiny", "messages": messages}) as response:
            fields = (await response.json())["fields"]
        return set(fields) & {"id_slot", "cache_prompt"}

    assert await sent("user:1", "a") == set()
    assert await sent("user:1", "a", "b") == set()
    assert await sent("user:2", "a", "b") == {"id_slot", "cache_prompt"}
    assert await sent("user:2", "a", "b", "c") == {"id_slot"}
    assert await sent("user:1", "a", "b") == {"id_slot", "cache_prompt"}


async def test_where_only_processes_tell_whose_a_request_is_a_user_who_is_alone_does_not_wait(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server("--echo-fields", backend={"slots": 2})
    saves_slots(server, monkeypatch)
    may_look = asyncio.Event()

    async def owner(_: Any) -> str:
        await may_look.wait()
        return "user:1"

    monkeypatch.setattr(server.context.callers, "owner_at_once", lambda _: None)
    monkeypatch.setattr(server.context.callers, "owner", owner)
    server.greenroom.conversation_saver.models = frozenset()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a" * 2_000}]}
    async with server.post("/v1/chat/completions", body) as response:
        assert response.status == 200
    may_look.set()
    (engine,) = server.greenroom.engines()
    gates, engine_id = server.greenroom.gates, engine.spec.engine_id
    await until_async(lambda: [one.owner for one in gates.contents(engine_id).values()] == ["user:1"])
