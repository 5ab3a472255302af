"""T1: the first requester disconnects while the model loads (Docker Model Runner, Ollama: the load dies)."""

from __future__ import annotations

import asyncio
from typing import Any

from waiting import until_async


async def test_the_second_waiter_is_served_by_the_load_the_first_began(make_daemon: Any) -> None:
    daemon = await make_daemon("--load-seconds", "1.5")
    await daemon.add("tiny")
    first = asyncio.create_task(daemon.chat("tiny"))
    await until_async(lambda: daemon.spawned("tiny"))
    second = asyncio.create_task(daemon.chat("tiny"))
    await until_async(lambda: _waiting(daemon, 2))
    first.cancel()
    answer = await second
    assert answer.status == 200, answer.body
    assert len(daemon.spawned("tiny")) == 1
    await daemon.at_rest()


async def test_a_load_whose_every_requester_has_left_is_there_for_the_next_one(make_daemon: Any) -> None:
    daemon = await make_daemon("--load-seconds", "1")
    await daemon.add("tiny")
    asks = [asyncio.create_task(daemon.chat("tiny")) for _ in range(5)]
    await until_async(lambda: daemon.spawned("tiny"))
    for ask in asks:
        ask.cancel()
    engine = await daemon.engine("tiny")
    answer = await daemon.chat("tiny")
    assert answer.status == 200
    assert (await daemon.engine("tiny"))["pid"] == engine["pid"]
    assert len(daemon.spawned("tiny")) == 1


async def _waiting(daemon: Any, count: int) -> bool:
    ledger = (await daemon.get("/engines/ledger")).json
    return bool(ledger["waiting"] == count)
