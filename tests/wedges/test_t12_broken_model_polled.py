"""T12: a broken model is polled all the time (LocalAI: 58 GB leaked; one failure poisons all loads)."""

from __future__ import annotations

import asyncio
from typing import Any


async def test_a_broken_model_is_started_a_bounded_number_of_times_and_others_load(make_daemon: Any) -> None:
    daemon = await make_daemon("--for", "broken=--die-in-load,3,--say,no such tensor")
    await daemon.add("broken", "whole")
    answers = []
    for number in range(100):
        answers.append(await daemon.chat("broken"))
        if number == 50:
            assert (await daemon.chat("whole")).status == 200
        await asyncio.sleep(0.02)
    assert len(daemon.spawned("broken")) <= 4
    assert {one.status for one in answers[:3]} == {500}
    assert (
        "could not load the model" in answers[0].error["message"] or "code 3" in answers[0].error["message"]
    )
    refused = [one for one in answers if one.status == 503]
    assert len(refused) >= 90
    for one in refused:
        assert int(one.headers["Retry-After"]) > 0
        assert "failed 3 times" in one.error["message"]
    # Polling does not fill the journal either.
    assert len(daemon.events("load_refused")) <= 2
    assert (await daemon.chat("whole")).status == 200
    assert len(daemon.spawned("whole")) == 1


async def test_a_hundred_simultaneous_requests_for_a_broken_model_all_get_the_reason(
    make_daemon: Any,
) -> None:
    daemon = await make_daemon("--for", "broken=--die-in-load,3")
    await daemon.add("broken")
    answers = await asyncio.gather(*(daemon.chat("broken") for _ in range(100)))
    assert {one.status for one in answers} <= {500, 503}
    assert all(one.error["message"] for one in answers)
    assert len(daemon.spawned("broken")) <= 3
    await daemon.at_rest()
