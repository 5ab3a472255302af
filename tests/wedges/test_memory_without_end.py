"""An engine takes memory without end: it alone ends, with a reason, and the model is loaded again."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from waiting import until_async
from wedge import MIB

pytestmark = pytest.mark.skipif(
    sys.platform == "darwin", reason="no figure there tells own memory from files"
)

GROWS = {"messages": [{"role": "user", "content": "grow"}]}


async def test_an_engine_without_bounds_ends_alone_and_its_model_loads_again(make_daemon: Any) -> None:
    daemon = await make_daemon("--grow-of", "grow", "--tokens", "40", "--token-delay", "0.1")
    await daemon.add("tiny", "other")
    assert (await daemon.chat("tiny", max_tokens=1)).status == 200
    first = await daemon.engine("tiny")
    neighbour = asyncio.create_task(daemon.chat("other", stream=True))
    await daemon.engine("other")
    answer = await daemon.chat("tiny", **GROWS)
    assert answer.status == 502, answer.body
    assert answer.error["code"] == "engine_over_memory"
    assert "of memory, mapped files not counted, and its limit was" in answer.error["message"]
    # It was alone inside, so it is not sent to another engine.
    again = await daemon.chat("tiny", **GROWS)
    assert (again.status, again.error["code"]) == (422, "request_ended_engine")
    (failed,) = daemon.events("load_failed")
    assert (failed["engine_id"], failed["failure"]["code"]) == (first["engine_id"], "engine_over_memory")
    assert failed["footprint"] > 1024 * MIB
    (stop,) = [one for one in daemon.events("engine_stop_requested") if one.get("fault")]
    assert "its limit was" in stop["reason"]
    assert first["pid"] not in daemon.engine_pids()

    why = (await daemon.get("/why/tiny")).json
    assert "its engine was stopped for" in why["answer"]
    assert "for using too much memory" in why["answer"]
    assert "its limit was" in why["answer"]
    assert why["cause"] == "engine_over_memory"

    assert (await daemon.chat("tiny", max_tokens=1)).status == 200
    second = await daemon.engine("tiny")
    assert second["pid"] != first["pid"]
    specs = [one["spec"] for one in daemon.events("load_admitted") if one["spec"]["model_ref"] == "tiny"]
    assert specs[-1]["memory"] > 1024 * MIB > specs[0]["memory"], "the ledger has learned"
    why = (await daemon.get("/why/tiny")).json
    assert ", which was stopped for using too much memory at " in why["answer"]
    assert "its limit was" in why["answer"]
    assert daemon.events("breaker_opened") == []

    streamed = await neighbour
    assert (streamed.status, streamed.frames[-1]) == (200, "[DONE]")
    assert len(streamed.text.split()) == 40


async def test_who_shared_that_engine_is_answered_by_the_next_one(make_daemon: Any) -> None:
    daemon = await make_daemon("--grow-of", "grow", "--first-token-delay", "2")
    await daemon.add("tiny")
    innocent = asyncio.create_task(daemon.chat("tiny", stream=True))
    guilty = asyncio.create_task(daemon.chat("tiny", stream=True, **GROWS))
    answers = await asyncio.gather(innocent, guilty)
    assert answers[0].status == 200
    assert answers[0].frames[-1] == "[DONE]"
    assert "engine_over_memory" in answers[1].body.decode()
    assert (await daemon.chat("tiny", stream=True, **GROWS)).status == 422


async def test_an_engine_with_more_than_its_share_ends_when_the_machine_has_no_memory_left(
    make_daemon: Any,
) -> None:
    daemon = await make_daemon("--grow-of", "grow", "--grow-to", "600")
    await daemon.add("tiny", "other")
    assert (await daemon.chat("other")).status == 200
    assert (await daemon.chat("tiny", **GROWS)).status == 200
    (daemon.home.parent / "available").write_text(str(64 * MIB))
    await until_async(lambda: daemon.events("load_failed"))
    (failed,) = daemon.events("load_failed")
    assert failed["failure"]["code"] == "engine_over_memory"
    assert "the machine had only 67.1 MB left" in failed["failure"]["message"]
    (daemon.home.parent / "available").unlink()
    # The other one is within what was reserved for it.

    async def alone() -> bool:
        return [one["model_name"] for one in await daemon.engines()] == ["other"]

    await until_async(alone)
    assert (await daemon.chat("other")).status == 200


async def test_no_engine_is_ended_for_its_memory_where_that_is_switched_off(make_daemon: Any) -> None:
    daemon = await make_daemon("--grow-of", "grow", "--grow-to", "1500", engine_memory_limit="off")
    await daemon.add("tiny")
    assert (await daemon.chat("tiny", **GROWS)).status == 200
    assert daemon.events("load_failed") == []
