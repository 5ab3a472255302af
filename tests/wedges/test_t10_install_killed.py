"""T10: killed during a reinstallation; the old one still runs (lemonade: working binary deleted first)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from toy import make_wheel, sources
from waiting import until_async


@pytest.fixture
async def toy(make_daemon: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A daemon with a backend that is really installed, from a wheel, and a model it has served."""
    daemon = await make_daemon(toy=True, start=False)
    make_wheel(daemon.home.parent / "wheels")
    daemon.env |= sources(daemon.home.parent / "wheels")
    await daemon.start()
    answer = await daemon.post("/engines/install-backend", {"backend": "toy"})
    assert answer.status == 200, answer.body
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    return daemon


@pytest.mark.parametrize(
    "boundary",
    [
        "install_requested:after",
        pytest.param("installation_committed:before", marks=pytest.mark.slow),
        "installation_committed:after",
    ],
)
async def test_a_model_is_served_after_a_kill_at_any_boundary_of_a_repair(toy: Any, boundary: str) -> None:
    await toy.stop()
    await toy.start(GREENROOM_TEST_KILL=boundary)
    repair = {"backend": "toy", "reinstall": True}
    ask = asyncio.create_task(toy.post("/engines/install-backend", repair))
    await toy.gone()
    assert (await ask).status <= 0
    await toy.start()
    assert (await toy.chat("tiny")).status == 200
    assert (await toy.get("/engines/status")).json["toy"].startswith("Running")


@pytest.mark.parametrize("after", [0.02, 0.1, 0.3])
async def test_an_engine_of_the_old_version_keeps_serving_during_the_install(toy: Any, after: float) -> None:
    engine = await toy.engine("tiny")
    repair = {"backend": "toy", "reinstall": True}
    ask = asyncio.create_task(toy.post("/engines/install-backend", repair))
    await asyncio.sleep(after)  # somewhere in the middle, another place each time
    assert (await toy.chat("tiny")).status == 200
    await toy.kill()
    status = (await ask).status
    assert status in (200, 0, -1)
    await toy.start()
    assert (await toy.chat("tiny")).status == 200
    # A machine that is quick has finished the repair by then, and rightly moved on to the new one.
    assert engine["pid"] in toy.engine_pids() or toy.events("installation_retiring")
    # However often it is done, it ends with the wish fulfilled and nothing half made.
    assert (await toy.post("/engines/install-backend", repair)).status == 200

    def all_are_whole() -> bool:
        folders = list(toy.home.glob("backends/toy/*/"))
        return all((folder / "installation.json").exists() for folder in folders)

    await until_async(all_are_whole, what="the end of removals")
