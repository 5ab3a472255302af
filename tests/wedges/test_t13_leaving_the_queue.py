"""T13: a disconnect while queued never touches another's stream (ik_llama.cpp: it aborted a decode)."""

from __future__ import annotations

import asyncio
from typing import Any

from waiting import until_async

TOKENS = 60


async def test_streams_go_on_untouched_while_a_crowd_in_the_queue_comes_and_goes(make_daemon: Any) -> None:
    daemon = await make_daemon(
        # What it holds leaves no room for another, also once it has been measured.
        *("--tokens", str(TOKENS), "--token-delay", "0.03", "--memory", "50"),
        memory_budget="100MiB",
        max_wait="30",
    )
    await daemon.add("busy", "wanted")
    assert (await daemon.chat("busy", max_tokens=1)).status == 200
    streams = [asyncio.create_task(daemon.chat("busy", stream=True)) for _ in range(4)]
    await until_async(lambda: _inside(daemon, 4))
    for _ in range(5):
        crowd = [asyncio.create_task(daemon.chat("wanted", stream=True)) for _ in range(6)]
        await until_async(lambda: _waiting(daemon, 6))
        for one in crowd:
            one.cancel()
        await until_async(lambda: _waiting(daemon, 0))
    whole = "".join(f"word{number} " for number in range(TOKENS))
    for stream in await asyncio.gather(*streams):
        assert stream.status == 200
        assert stream.text == whole
        assert stream.frames[-1] == "[DONE]"
    assert daemon.events("engine_stop_requested", "load_failed") == []
    await daemon.at_rest()
    assert (await daemon.chat("wanted", max_tokens=1)).status == 200


async def test_a_client_that_leaves_a_shared_engine_ends_only_its_own_generation(make_daemon: Any) -> None:
    daemon = await make_daemon("--tokens", str(TOKENS), "--token-delay", "0.03")
    await daemon.add("tiny")
    assert (await daemon.chat("tiny", max_tokens=1)).status == 200
    staying = [asyncio.create_task(daemon.chat("tiny", stream=True)) for _ in range(3)]
    leaving = [asyncio.create_task(daemon.chat("tiny", stream=True)) for _ in range(10)]
    await until_async(lambda: _inside(daemon, 13))
    for one in leaving:
        one.cancel()
    await until_async(lambda: _inside(daemon, 3), 1.0)
    for stream in await asyncio.gather(*staying):
        assert stream.text.split()[-1] == f"word{TOKENS - 1}"
        assert stream.frames[-1] == "[DONE]"


async def _inside(daemon: Any, count: int) -> bool:
    return bool(sum(row["inside"] for row in await daemon.engines()) == count)


async def _waiting(daemon: Any, count: int) -> bool:
    return bool((await daemon.get("/engines/ledger")).json["waiting"] == count)
