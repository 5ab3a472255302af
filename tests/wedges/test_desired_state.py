"""Models that were loaded and are still wanted come back: adopted, at once, or on demand; so do warm ones."""

from __future__ import annotations

from typing import Any

from waiting import until_async


async def _names(daemon: Any, state: str = "ready") -> list[str]:
    return sorted(row["model_name"] for row in await daemon.engines() if row["state"] == state)


async def _loaded(daemon: Any, *names: str) -> bool:
    return await _names(daemon) == sorted(names)


async def test_pinned_models_come_back_at_once_and_others_on_demand(make_daemon: Any) -> None:
    daemon = await make_daemon()
    await daemon.add("pinned", "configured", "plain")
    await daemon.configure("configured", keep_alive="-1")
    assert (await daemon.chat("pinned", keep_alive=-1)).status == 200
    assert (await daemon.chat("plain")).status == 200
    await until_async(lambda: _loaded(daemon, "configured", "pinned", "plain"))
    await daemon.at_rest()
    await daemon.stop()
    assert daemon.engine_pids() == []
    await daemon.start()
    await until_async(lambda: _loaded(daemon, "configured", "pinned"))
    rows = {row["model_name"]: row for row in await daemon.engines()}
    # They are pinned as before, by whatever client.
    assert {row["stays"] for row in rows.values()} == {"-1"}
    assert (await daemon.chat("plain")).status == 200


async def test_the_reload_policy_decides_whether_all_models_or_none_return_at_a_restart(
    make_daemon: Any,
) -> None:
    daemon = await make_daemon(restore="all")
    await daemon.add("one", "two", "unloaded")
    for name in ("one", "two", "unloaded"):
        assert (await daemon.chat(name)).status == 200
    await daemon.unload("unloaded")
    await daemon.stop()
    await daemon.start()
    await until_async(lambda: _loaded(daemon, "one", "two"))
    await daemon.at_rest()
    await daemon.stop()
    await daemon.start(GREENROOM_RESTORE="never")
    await daemon.at_rest()
    assert await daemon.engines() == []


async def test_what_was_loaded_two_lives_ago_does_not_come_back(make_daemon: Any) -> None:
    daemon = await make_daemon(restore="never")
    await daemon.add("old")
    assert (await daemon.chat("old")).status == 200
    await daemon.stop()
    await daemon.start()
    await daemon.stop()
    await daemon.start(GREENROOM_RESTORE="all")
    await daemon.at_rest()
    assert await daemon.engines() == []


async def test_what_died_with_a_killed_daemon_comes_back_too(make_daemon: Any) -> None:
    daemon = await make_daemon(restore="all", engine_grace="1")
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    first = await daemon.engine("tiny")
    await daemon.kill()
    await until_async(lambda: not daemon.engine_pids())
    await daemon.start()
    second = await daemon.engine("tiny")
    assert second["pid"] != first["pid"]


async def test_warm_models_are_loaded_at_every_start(make_daemon: Any) -> None:
    daemon = await make_daemon(warm="tiny,absent")
    # The store is empty, which is logged and does no harm.
    assert "absent should be warm but is not in the store; run: greenroom pull absent" in daemon.log()
    await daemon.add("tiny", "other")
    await daemon.stop()
    await daemon.start()
    engine = await daemon.engine("tiny")
    assert await _names(daemon) == ["tiny"]
    await until_async(lambda: daemon.events("load_admitted"))
    assert daemon.events("load_admitted")[0]["cause"].startswith("warm-")
    # One that outlived the daemon is warm already.
    await daemon.kill()
    await daemon.start()
    assert (await daemon.engine("tiny"))["pid"] == engine["pid"]
    assert len(daemon.spawned("tiny")) == 1
