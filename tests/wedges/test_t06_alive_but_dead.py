"""T6: the engine's HTTP is alive and its generation is dead (mlx-lm: completions hang for hours)."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from waiting import suspend, until_async


async def test_a_dead_engine_is_detected_ended_and_replaced_and_waiting_requests_are_served(
    make_daemon: Any,
) -> None:
    daemon = await make_daemon("--freeze-after-requests", "2", stall_after="2")
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    assert (await daemon.chat("tiny")).status == 200
    first = await daemon.engine("tiny")
    # The third request is never answered by that engine, whose health path is green all the while.
    answer = await daemon.chat("tiny")
    assert answer.status == 200, answer.body
    second = await daemon.engine("tiny")
    assert second["pid"] != first["pid"]
    (stop,) = [one for one in daemon.events("engine_stop_requested") if one.get("fault")]
    assert stop["engine_id"] == first["engine_id"]
    assert "did not answer a request for one token" in stop["reason"]
    (failed,) = daemon.events("load_failed")
    assert (failed["failure"]["code"], failed["was_ready"]) == ("engine_stalled", True)
    assert first["pid"] not in daemon.engine_pids()


async def test_a_stream_that_falls_silent_for_good_is_one_error_frame_with_the_reason(
    make_daemon: Any,
) -> None:
    daemon = await make_daemon("--tokens", "50", "--freeze-after-tokens", "3", stall_after="2")
    await daemon.add("tiny")
    answer = await daemon.chat("tiny", stream=True)
    assert "was stopped: it sent nothing" in answer.frames[-1]["error"]["message"]
    assert [one for one in daemon.events("engine_stop_requested") if one.get("fault")]


async def test_a_prefill_that_burns_a_processor_is_never_killed(make_daemon: Any) -> None:
    daemon = await make_daemon("--burn-before-first-token", "4", stall_after="1.5")
    await daemon.add("tiny")
    answer = await daemon.chat("tiny")
    assert answer.status == 200
    assert answer.seconds > 3.9
    assert len(daemon.spawned("tiny")) == 1
    assert daemon.events("engine_stop_requested") == []


async def test_an_engine_that_computes_elsewhere_but_answers_one_token_is_left_alone(
    make_daemon: Any,
) -> None:
    # No byte and no processor time, as where a graphics processor does it all; but others are answered.
    daemon = await make_daemon("--first-token-delay", "4", stall_after="1.5")
    await daemon.add("tiny")
    answer = await daemon.chat("tiny", stream=True)
    assert answer.status == 200
    assert answer.frames[-1] == "[DONE]"
    assert "error" not in answer.body.decode()
    assert daemon.events("engine_stop_requested") == []


async def test_without_requests_inside_there_is_nothing_to_detect(make_daemon: Any) -> None:
    daemon = await make_daemon("--freeze-after-requests", "1", stall_after="1")
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    ask = asyncio.create_task(daemon.chat("tiny"))
    await until_async(lambda: _inside(daemon))
    ask.cancel()
    await daemon.at_rest()
    await asyncio.sleep(2.5)  # what must not happen has no event
    assert daemon.events("engine_stop_requested") == []


async def test_a_hanging_engine_is_found_even_if_its_client_has_left(
    make_daemon: Any,
) -> None:
    daemon = await make_daemon("--freeze-after-requests", "1", stall_after="3")
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    ask = asyncio.create_task(daemon.chat("tiny"))
    await until_async(lambda: _inside(daemon))
    await asyncio.sleep(1.2)  # long enough to have been left in the lurch
    ask.cancel()
    await until_async(lambda: daemon.events("engine_exited") and daemon.events("load_failed"))
    (failed,) = daemon.events("load_failed")
    assert failed["failure"]["code"] == "engine_stalled"


async def test_a_stopped_engine_is_replaced_within_seconds_and_why_says_so(make_daemon: Any) -> None:
    daemon = await make_daemon("--tokens", "3")
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    first = await daemon.engine("tiny")
    suspend(first["pid"])
    answer = await daemon.chat("tiny")
    assert answer.status == 200, answer.body
    assert answer.seconds < 8.0
    assert (await daemon.engine("tiny"))["pid"] != first["pid"]
    (failed,) = daemon.events("load_failed")
    assert (failed["failure"]["code"], failed["failure"]["blame"]) == ("engine_halted", "machine")
    assert daemon.events("breaker_opened") == []
    assert first["pid"] not in daemon.engine_pids()
    assert "stopped by a signal from outside" in (await daemon.get("/why/tiny")).body.decode()


async def test_an_engine_without_its_socket_is_replaced_though_clients_keep_asking(make_daemon: Any) -> None:
    daemon = await make_daemon("--tokens", "3")
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    first = await daemon.engine("tiny")
    (spawned,) = daemon.events("engine_spawned")
    os.unlink(spawned["endpoint"])
    await until_async(lambda: daemon.events("load_failed"), bound=5.0)
    answers = await asyncio.gather(*(daemon.chat("tiny") for _ in range(4)))
    assert [one.status for one in answers] == [200] * 4
    assert max(one.seconds for one in answers) < 8.0
    assert (await daemon.engine("tiny"))["pid"] != first["pid"]
    assert daemon.events("load_failed")[0]["failure"]["code"] == "engine_unreachable"
    assert "its socket file is gone" in (await daemon.get("/why/tiny")).body.decode()


async def _inside(daemon: Any) -> bool:
    return any(row["inside"] for row in await daemon.engines())
