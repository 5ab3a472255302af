"""T3: the eviction target gets a request at the worst moment (Ollama: generation down for 5.5 hours)."""

from __future__ import annotations

import asyncio
from typing import Any


async def test_two_models_that_evict_each_other_are_both_served(make_daemon: Any) -> None:
    # They hold what is reserved for them: an engine measured to need less would leave room for both.
    daemon = await make_daemon("--tokens", "2", "--memory", "50", memory_budget="100MiB")
    await daemon.add("one", "two")

    async def client(names: tuple[str, ...]) -> list[int]:
        return [(await daemon.chat(name)).status for name in names]

    turns = await asyncio.gather(
        client(("one", "two") * 3), client(("two", "one") * 3), client(("one", "one", "two") * 2)
    )
    assert list(turns) == [[200] * 6] * 3
    # No request is inside an engine or waiting, and exactly the expected engine runs.
    await daemon.at_rest()
    engines = await daemon.engines()
    assert len([one for one in engines if one["state"] == "ready"]) == 1
    evicted = {one["engine_id"] for one in daemon.events("eviction_decided")}
    failed = daemon.events("load_failed")
    assert failed == []
    assert {one["engine_id"] for one in daemon.events("engine_exited")} <= evicted


async def test_an_engine_that_is_unloaded_again_and_again_under_load_never_drops_a_request(
    make_daemon: Any,
) -> None:
    daemon = await make_daemon("--tokens", "2")
    await daemon.add("tiny")
    over = asyncio.Event()

    async def unloads() -> None:
        while not over.is_set():
            await daemon.post("/engines/unload", {"all": True})
            await asyncio.sleep(0.01)

    task = asyncio.create_task(unloads())
    statuses = [(await daemon.chat("tiny")).status for _ in range(12)]
    over.set()
    await task
    assert statuses == [200] * 12
