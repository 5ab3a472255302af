"""T9: what the journal says of an engine is a claim (GPUStack: UNREACHABLE forever, or dead and Running)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from waiting import until_async


async def test_an_engine_that_failed_one_check_is_asked_again_and_recovers(
    make_daemon: Any, place: Path
) -> None:
    unwell = place / "unwell"
    daemon = await make_daemon("--unwell-while", str(unwell))
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    engine = await daemon.engine("tiny")
    await daemon.kill()
    unwell.touch()
    await daemon.start()
    # It is stored that it was not well when it was looked at.
    (adopted,) = daemon.events("engine_adopted")
    assert adopted["ready"] is False
    unwell.unlink()
    healed = await daemon.engine("tiny")
    assert healed["pid"] == engine["pid"]
    assert (await daemon.chat("tiny")).status == 200
    assert len(daemon.spawned("tiny")) == 1


async def test_an_engine_that_died_without_a_daemon_is_not_believed_to_run(make_daemon: Any) -> None:
    daemon = await make_daemon()
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    engine = await daemon.engine("tiny")
    await daemon.kill()
    os.kill(engine["pid"], signal.SIGKILL)
    await until_async(lambda: engine["pid"] not in daemon.engine_pids())
    await daemon.start()
    assert (await daemon.chat("tiny")).status == 200
    assert [row["pid"] for row in await daemon.engines()] == daemon.engine_pids()
    ended = [one for one in daemon.events("engine_exited") if one["engine_id"] == engine["engine_id"]]
    assert ended[0]["exit"]["signal"] == "SIGKILL"


async def test_a_breaker_of_yesterday_opens_by_itself(make_daemon: Any) -> None:
    daemon = await make_daemon("--for", "sick=--die-in-load,1", start=False)
    daemon.env["GREENROOM_TEST_COOL_DOWN"] = "3"
    await daemon.start()
    await daemon.add("sick")
    for _ in range(3):
        assert (await daemon.chat("sick")).status == 500
    assert (await daemon.chat("sick")).error["code"] == "breaker_open"
    await daemon.stop()
    # The cause is gone, but the journal does not know.
    daemon.flags = ()
    await daemon.start()

    async def healed() -> bool:
        return bool((await daemon.chat("sick")).status == 200)

    await until_async(healed)
