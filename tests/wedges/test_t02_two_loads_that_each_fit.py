"""T2: two loads at once that each fit alone (mlx-serve: both read the stale total, and both load)."""

from __future__ import annotations

import asyncio
from typing import Any

from wedge import MIB


async def test_loads_in_flight_reserve_so_the_second_waits_for_the_first(make_daemon: Any) -> None:
    daemon = await make_daemon("--load-seconds", "0.4", memory_budget="100MiB")
    await daemon.add("one", "two")
    answers = await asyncio.gather(daemon.chat("one"), daemon.chat("two"))
    assert [answer.status for answer in answers] == [200, 200], answers
    admitted = daemon.events("load_admitted")
    assert len(admitted) == 2
    assert all(one["promised"] <= one["budget"] == 100 * MIB for one in admitted)
    (evicted,) = daemon.events("eviction_decided")
    assert (evicted["reason"], evicted["in_favour_of"]) == ("room", admitted[1]["spec"]["model_ref"])
    assert len(daemon.engine_pids()) == 1


async def test_what_can_never_fit_is_refused_at_once_with_the_numbers(make_daemon: Any) -> None:
    daemon = await make_daemon()
    await daemon.add("big")
    await daemon.stop()
    await daemon.start(GREENROOM_MEMORY_BUDGET="50MiB")
    answer = await daemon.chat("big")
    assert answer.status == 507
    assert answer.seconds < 2.0
    assert "67.1 MB" in answer.error["message"]
    assert "52.4 MB" in answer.error["message"]
    assert daemon.spawned() == []
