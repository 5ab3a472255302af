"""T5: memory pressure that appears and clears within one tick (oMLX: a latch that never clears)."""

from __future__ import annotations

import asyncio
from typing import Any

from waiting import until_async
from wedge import MIB


async def test_pressure_that_passes_leaves_nothing_behind(make_daemon: Any) -> None:
    daemon = await make_daemon()
    await daemon.add("ready", "waiting")
    # Pinned, or it would rightly make room for the other.
    assert (await daemon.chat("ready", keep_alive=-1)).status == 200
    file = daemon.home.parent / "available"
    file.write_text("550000000")  # less the head-room of 500 MB: not enough for another engine
    ask = asyncio.create_task(daemon.chat("waiting", stream=True))
    told = await until_async(lambda: _waits_for_memory(daemon))
    assert told.startswith("waiting for memory: it needs 67.1 MB, 50.0 MB is free")
    # What is loaded goes on serving, and is neither evicted for pressure from outside nor closed.
    assert (await daemon.chat("ready")).status == 200
    file.unlink()
    answer = await ask
    assert answer.status == 200
    assert answer.frames[-1] == "[DONE]"
    assert (await daemon.chat("ready")).status == 200
    assert daemon.events("load_refused", "load_failed") == []
    ledger = (await daemon.get("/engines/ledger")).json
    assert ledger["waiting"] == 0
    assert ledger["free"] > 64 * MIB


async def test_pressure_that_stays_is_a_refusal_with_the_numbers_and_passes_too(make_daemon: Any) -> None:
    daemon = await make_daemon(max_wait="1")
    await daemon.add("tiny")
    file = daemon.home.parent / "available"
    file.write_text("540000000")
    answer = await daemon.chat("tiny")
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "67.1 MB" in answer.error["message"]
    file.unlink()
    assert (await daemon.chat("tiny")).status == 200


async def _waits_for_memory(daemon: Any) -> str:
    """What its job says; empty until it does."""
    jobs = (await daemon.get("/jobs")).json
    return next((str(job["message"]) for job in jobs if "memory" in job["message"]), "")
