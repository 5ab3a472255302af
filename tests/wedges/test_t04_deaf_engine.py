"""T4: an engine ignores SIGINT and SIGTERM (LocalAI: the watchdog deadlocks; DMR: every load is blocked)."""

from __future__ import annotations

import asyncio
from typing import Any

from waiting import until_async


async def test_other_models_are_served_and_loaded_while_a_deaf_one_is_being_ended(make_daemon: Any) -> None:
    daemon = await make_daemon("--for", "deaf=--deaf-to-sigterm,--child")
    await daemon.add("deaf", "other", "third")
    assert (await daemon.chat("deaf")).status == 200
    assert (await daemon.chat("other")).status == 200
    engine = await daemon.engine("deaf")
    await daemon.post("/engines/unload", {"models": ["deaf"]})
    await until_async(lambda: daemon.events("engine_stop_requested"))
    assert (await daemon.chat("third")).status == 200
    latencies = []
    while not daemon.events("engine_exited"):
        answer = await daemon.chat("other")
        assert answer.status == 200
        latencies.append(answer.seconds)
        await asyncio.sleep(0.1)
    assert len(latencies) > 10, "it was not deaf long enough to tell"
    assert sorted(latencies)[len(latencies) // 2] < 1.0
    (ended,) = daemon.events("engine_exited")
    assert (ended["engine_id"], ended["exit"]["signal"]) == (engine["engine_id"], "SIGKILL")
    # Its child ends with it, and the model can be loaded again.
    assert engine["pid"] not in daemon.engine_pids()
    assert len(daemon.engine_pids()) == 2
    assert (await daemon.chat("deaf")).status == 200


async def test_a_request_for_the_model_of_a_deaf_engine_is_served_by_another(make_daemon: Any) -> None:
    daemon = await make_daemon("--deaf-to-sigterm")
    await daemon.add("deaf")
    assert (await daemon.chat("deaf")).status == 200
    first = await daemon.engine("deaf")
    await daemon.post("/engines/unload", {"all": True})
    answer = await daemon.chat("deaf")
    assert answer.status == 200
    assert answer.seconds < 9.0, "it waited for the deaf one"
    rows = {row["engine_id"]: row["state"] for row in await daemon.engines()}
    assert rows.pop(first["engine_id"]) == "stopping"
    assert list(rows.values()) == ["ready"]
