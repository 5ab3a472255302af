"""T8: the daemon is killed at the boundaries of an engine's events (lilbee: orphans, double spawns).

Every boundary of a whole life is tried by `tests/crash`; here are those between which an engine could get
lost or be started twice, seen from outside: processes, sockets, answers.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from waiting import until_async

BOUNDARIES = (
    "load_admitted:after",
    "engine_start_requested:before",
    "engine_start_requested:after",
    pytest.param("engine_spawned:before", marks=pytest.mark.slow),
    "engine_spawned:after",
    pytest.param("engine_ready:before", marks=pytest.mark.slow),
    "engine_ready:after",
)


@pytest.mark.parametrize("boundary", BOUNDARIES)
async def test_a_daemon_killed_at_a_boundary_leaves_one_engine_that_serves(
    make_daemon: Any, boundary: str
) -> None:
    daemon = await make_daemon()
    await daemon.add("tiny")
    await daemon.stop()
    await daemon.start(GREENROOM_TEST_KILL=boundary)
    ask = asyncio.create_task(daemon.chat("tiny"))
    await daemon.gone()
    assert (await ask).status <= 0
    await daemon.start()
    answer = await daemon.chat("tiny")
    assert answer.status == 200, answer.body
    (pid,) = daemon.engine_pids()
    assert (await daemon.engine("tiny"))["pid"] == pid
    if boundary.startswith(("engine_spawned", "engine_ready")):
        # It ran already, seen or not: it was taken over, and nothing was started beside it.
        assert len(daemon.events("engine_start_requested")) == 1
        assert len(daemon.events("engine_adopted")) == 1
    await daemon.stop()
    await until_async(lambda: not daemon.processes())


@pytest.mark.parametrize("boundary", ["eviction_decided:after", "engine_stop_requested:before"])
async def test_a_daemon_killed_while_an_engine_is_being_ended_ends_it_in_its_next_life(
    make_daemon: Any, boundary: str
) -> None:
    daemon = await make_daemon()
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    first = await daemon.engine("tiny")
    await daemon.kill()
    await daemon.start(GREENROOM_TEST_KILL=boundary)
    await daemon.post("/engines/unload", {"all": True})
    await daemon.gone()
    await daemon.start()
    # It was to end, so it does: the next request gets another.
    await until_async(lambda: first["pid"] not in daemon.engine_pids())
    assert (await daemon.chat("tiny")).status == 200
    assert len(daemon.engine_pids()) == 1


async def test_a_daemon_killed_while_it_streams_finds_its_engine_and_serves_the_next_request(
    make_daemon: Any,
) -> None:
    daemon = await make_daemon("--tokens", "200", "--token-delay", "0.02")
    await daemon.add("tiny")
    async with daemon.streaming("tiny"):
        engine = await daemon.engine("tiny")
        await daemon.kill()
    await daemon.start()
    answer = await daemon.chat("tiny", max_tokens=2)
    assert answer.status == 200
    assert (await daemon.engine("tiny"))["pid"] == engine["pid"]
    assert len(daemon.spawned("tiny")) == 1
    assert len(daemon.events("engine_adopted")) == 1
    assert len(daemon.events("load_admitted")) == 1


async def test_a_daemon_stopped_with_its_engines_kept_is_followed_by_one_that_serves_without_a_reload(
    make_daemon: Any,
) -> None:
    daemon = await make_daemon()
    await daemon.add("tiny")
    assert (await daemon.chat("tiny", keep_alive=-1)).status == 200
    engine = await daemon.engine("tiny")
    await daemon.stop(keep_engines=60)
    assert daemon.engine_pids() == [engine["pid"]]
    await daemon.start()
    adopted = await daemon.engine("tiny")
    assert adopted["pid"] == engine["pid"]
    assert (await daemon.chat("tiny")).status == 200
    assert len(daemon.spawned("tiny")) == 1
    # The request that pinned it is remembered too.
    assert adopted["stays"] == "-1"
    assert adopted["expires_in"] is None


async def test_engines_kept_for_a_time_end_when_no_daemon_has_adopted_them(make_daemon: Any) -> None:
    daemon = await make_daemon()
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    await daemon.stop(keep_engines=1)
    # That second may be over by now, so the journal says that the daemon did not end them.
    assert daemon.events("engine_stop_requested", "engine_exited") == []
    await until_async(lambda: not daemon.processes())
