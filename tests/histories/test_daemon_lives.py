"""What the ends of daemons did: the first line of `why` in each of these histories.

64. a daemon was stopped by a request
65. a model was loaded when its daemon stopped
66. refused since a configured context needs too much memory for this daemon
67. configured again after such a refusal
68. a daemon was killed, and is down: asked about it, and about a model that was loaded
69. the daemon after one that was killed
70. a model whose engine outlived a killed daemon
71. a request that was inside when its daemon was killed
72. the terminal of a daemon was closed
73. no daemon came back before the engines that were left running ended
"""

from __future__ import annotations

import signal
from typing import Any

import pytest
import pytest_asyncio

from histories import Told, reads, sent
from waiting import until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIGURE = "POST /engines/_configure"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(make_told: Any) -> Told:
    """With a gigabyte for engines."""
    made: Told = await make_told("--tokens", "3", memory_budget="1GB", restore="never")
    return made


async def test_a_daemon_is_stopped_and_another_has_less_memory(daemon: Told) -> None:
    await daemon.add("tiny")
    await daemon.add_wide("wide")
    body = {"model": "wide", "context-size": 131072, "preload": False}
    configured = await daemon.post("/engines/_configure", body)
    await daemon.chat("tiny")
    await daemon.post("/daemon/stop", {})
    await daemon.gone()
    reads(
        await daemon.first_line("daemon"),
        "Greenroom is not running: it shut down cleanly at {at}: a stop was requested.",
    )
    stopped = "tiny is not loaded: it was unloaded when Greenroom stopped at {at}."
    reads(await daemon.first_line("tiny"), stopped)
    await daemon.start(GREENROOM_MEMORY_BUDGET="150MiB")
    reads(await daemon.first_line("tiny"), stopped)

    assert (await daemon.chat("wide")).status == 507
    found = await daemon.why("wide")
    reads(
        found["answer"],
        "wide is not loaded: requests for it have been refused since {at}: it needs {size} with the "
        "context of 131072 tokens that {configured} configured at {clock}, and engines may use {size} in "
        "total. Its own context is {number} tokens.",
        configured=sent(configured, CONFIGURE),
    )
    assert found["remedies"][0]["command"] == "greenroom configure wide --reset context"
    body = {"model": "wide", "reset": ["context-size"], "preload": False}
    reset = await daemon.post("/engines/_configure", body)
    reads(
        await daemon.first_line("wide"),
        "wide is not loaded: {reset} configured the default context size instead of 131072 at {at}, so "
        "the next request is tried again. Before that, requests for it were refused: wide needs {size} of "
        "memory; engines may use {size} in total.",
        reset=sent(reset, CONFIGURE),
    )


async def test_a_daemon_is_killed(make_told: Any) -> None:
    daemon = await make_told("--tokens", "100000", "--token-delay", "0.02")
    await daemon.add("left")
    async with daemon.streaming("left") as answer:
        name = answer.headers["X-Request-Id"]
        await daemon.kill()
    down = (
        "Greenroom is not running: process {number} was killed or crashed after {at}, when it stored its "
        "last event."
    )
    # What it had not written yet of requests is lost with it.
    loaded = (
        f"left is loaded: engine {{engine}} has served it on fake since {{at}}, because request "
        f"{name}{{sender}} needed left."
    )
    reads(await daemon.first_line("daemon"), down)
    reads(
        await daemon.first_line("left"),
        f"{down} Until then: {loaded}",
    )
    await daemon.start()
    reads(
        await daemon.first_line("daemon"),
        "Greenroom {version} has been running since {at} as process {number}. The previous daemon did not "
        "shut down cleanly: it crashed or was killed.",
    )
    adopted = "It outlived the daemon that started it; the next daemon re-adopted it at {clock}."
    reads(await daemon.first_line("left"), f"{loaded} {adopted}")
    reads(
        await daemon.first_line(name),
        f"Request {name} first took effect at {{at}}. Its end is not recorded: the daemon that it was sent "
        "to was killed or crashed. It made Greenroom load left on fake as engine {engine}, which took "
        "{took}.",
    )


@pytest.mark.slow
async def test_an_idle_engine_beside_a_busy_one_outlives_a_killed_daemon(make_told: Any) -> None:
    daemon = await make_told("--tokens", "3", "--for", "endless=--tokens,100000,--token-delay,0.02")
    await daemon.add("idle", "endless")
    await daemon.chat("idle")
    for lives in range(1, 5):
        async with daemon.streaming("endless"):
            await daemon.kill()
        await daemon.start()
        await daemon.adopted(2 * lives)
        assert daemon.events("engine_stop_requested") == []


async def test_its_terminal_is_closed(daemon: Told) -> None:
    daemon.running.send_signal(signal.SIGHUP)
    await daemon.gone()
    reads(
        await daemon.first_line("daemon"),
        "Greenroom is not running: it shut down cleanly at {at}: its terminal was closed (SIGHUP).",
    )
    await daemon.start()


@pytest.mark.slow
async def test_no_daemon_comes_back_in_time(daemon: Told) -> None:
    await daemon.add("orphan")
    await daemon.chat("orphan")
    await daemon.stop(keep_engines=1)
    await until_async(lambda: not daemon.processes())
    await daemon.start()
    await daemon.stored("load_failed", "orphan")
    reads(
        await daemon.first_line("orphan"),
        "orphan is not loaded: its engine ended at {at}. The fake engine for orphan was stopped (no "
        "daemon came back within 1s).",
    )
