"""Memory of graphics devices: each a pool of its own, told by `nvidia-smi`, reserved, measured, freed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nvidia_tool import have, put_tool
from waiting import until_async
from wedge import MIB, Daemon

NEED = 64
"""MiB that an engine reserves on its device."""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="CUDA is on Linux")

Machine = Callable[..., Awaitable[Daemon]]


@pytest.fixture
def folder(place: Path) -> Path:
    """What the devices of this machine are, as `nvidia-smi` has it."""
    found = place / "nvidia"
    found.mkdir()
    return found


@pytest.fixture
def machine(make_daemon: Any, folder: Path) -> Machine:
    """`await machine(164, 164, gpu_headroom="64MiB")`: a daemon where there are devices of so many MiB."""

    async def make(
        *sizes: int, others: tuple[int, ...] = (), flags: tuple[str, ...] = (), **settings: str
    ) -> Daemon:
        have(folder, sizes, others)
        put_tool(folder)
        daemon: Daemon = await make_daemon(*flags, start=False, **settings)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        daemon.env |= {"NVIDIA_FAKE_FOLDER": str(folder), "PATH": path}
        return await daemon.start()

    return make


async def shown_device(daemon: Daemon, name: str) -> str:
    """The device that the engine of a model really sees."""
    row = await daemon.engine(name)
    claim = json.loads((daemon.home / "engines" / row["engine_id"] / "claim").read_text())
    connector = aiohttp.UnixConnector(claim["engine_socket"])
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://e/stats") as stats:
        return str((await stats.json())["device"])


async def test_engines_are_spread_over_devices_and_the_least_recently_used_of_one_makes_room(
    machine: Machine,
) -> None:
    daemon = await machine(164, 164, gpu_headroom="64MiB")
    await daemon.add("a", "b", "c")
    assert (await daemon.chat("a")).status == 200
    assert (await daemon.chat("b")).status == 200
    assert {await shown_device(daemon, "a"), await shown_device(daemon, "b")} == {"0", "1"}
    rows = {row["model_name"]: row for row in await daemon.engines()}
    assert {row["device"] for row in rows.values()} == {"GPU-0", "GPU-1"}
    assert {row["device_memory"] // MIB for row in rows.values()} == {NEED}
    devices = (await daemon.get("/engines/ledger")).json["devices"]
    numbers = [[one[key] // MIB for key in ("budget", "promised", "free")] for one in devices]
    assert numbers == [[100, NEED, 100 - NEED - 1]] * 2
    # There is no room on either; the machine's own memory has plenty.
    assert (await daemon.chat("c")).status == 200
    (evicted,) = daemon.events("eviction_decided")
    assert (evicted["model_ref"], evicted["reason"], evicted["device"]) == ("a", "room", rows["a"]["device"])
    assert evicted["memory"] // MIB == NEED
    assert (await daemon.engine("c"))["device"] == rows["a"]["device"]
    assert (await daemon.engine("b"))["pid"] == rows["b"]["pid"]
    for load in daemon.events("load_admitted"):
        assert load["device_promised"] <= load["device_budget"]


async def test_a_device_that_others_use_is_left_to_them_until_they_have_gone(
    machine: Machine, folder: Path
) -> None:
    daemon = await machine(164, 164, others=(150, 0), gpu_headroom="10MiB", max_wait="20")
    await daemon.add("a", "b")
    await daemon.chat("a", keep_alive=-1)
    assert await shown_device(daemon, "a") == "1"
    have(folder, (164, 164), (150, 120))
    await until_async(lambda: _free(daemon, 1, 40))
    waiting = asyncio.create_task(daemon.chat("b"))
    await until_async(lambda: _waits(daemon))
    have(folder, (164, 164), (0, 120))
    assert (await waiting).status == 200
    assert await shown_device(daemon, "b") == "0"


async def test_what_an_engine_really_takes_of_its_device_counts_at_once(machine: Machine) -> None:
    daemon = await machine(200, flags=("--device-memory", "150"), gpu_headroom="10MiB")
    await daemon.add("a")
    assert (await daemon.chat("a")).status == 200

    async def measured() -> Any:
        row = await daemon.engine("a")
        return row["device_measured"] and row

    row = await until_async(measured)
    assert (row["device_measured"] // MIB, row["device_memory"] // MIB) == (150, 150)
    (device,) = (await daemon.get("/engines/ledger")).json["devices"]
    assert device["promised"] // MIB == 150
    # Its end is remembered: the next engine of its kind has as much reserved from the start.
    await daemon.unload()
    assert (await daemon.chat("a")).status == 200
    assert (await daemon.engine("a"))["device_memory"] // MIB == 150


async def test_without_measurements_of_processes_the_estimate_stays(machine: Machine, folder: Path) -> None:
    (folder / "mute").touch()
    daemon = await machine(200, flags=("--device-memory", "150"), gpu_headroom="10MiB")
    await daemon.add("a")
    for _ in range(5):
        assert (await daemon.chat("a")).status == 200
    row = await daemon.engine("a")

    async def only_memory_is_measured() -> bool:
        # A reading from before the process was listed says 0.
        found = await daemon.engine("a")
        return bool(found["measured"]) and found["device_measured"] is None

    await until_async(only_memory_is_measured)
    assert row["device_memory"] // MIB == NEED
    # Then not even the devices answer: what is reserved is all there is to go by.
    (folder / "broken").touch()

    async def unknown() -> bool:
        (device,) = (await daemon.get("/engines/ledger")).json["devices"]
        return device["available"] is None and device["free"] // MIB == 190 - NEED - 1

    await until_async(unknown)
    assert (await daemon.chat("a")).status == 200


async def test_what_fits_no_device_is_refused_with_the_device_and_the_numbers(machine: Machine) -> None:
    daemon = await machine(64, 100, gpu_headroom="50MiB")
    await daemon.add("a")
    refused = await daemon.chat("a")
    assert refused.status == 507
    assert refused.error["message"].startswith(
        "a needs 67.1 MB of the memory of NVIDIA Test 1; engines may use 52.4 MB in total."
    )
    chat = (await daemon.get("/models/a")).json["serving"][0]
    assert (chat["memory_budget"] // MIB, chat["fits"]) == (50, False)


DIVIDES = {"test_divides": "1", "gpu_headroom": "10MiB"}
OFFLOADED = (
    "load_tensors: offloaded {}/17 layers to GPU",
    "load_tensors:        CUDA0 model buffer size =    {}.00 MiB",
    "load_tensors:   CPU_Mapped model buffer size =     1.00 MiB",
)


def saying(layers: int) -> tuple[str, ...]:
    """Flags of an engine that logs so many layers on a device, of a MiB each."""
    lines = [line.format(layers) for line in (OFFLOADED if layers else OFFLOADED[2:])]
    return tuple(word for line in lines for word in ("--say", line))


async def why(daemon: Daemon) -> Any:
    return (await daemon.get("/why/a")).json


async def test_what_an_engine_has_loaded_on_devices_is_shown(
    machine: Machine,
) -> None:
    answered = "task 7 | eval time = 400.00 ms / 25 tokens (16.00 ms per token, 62.50 tokens per second)"
    daemon = await machine(200, flags=(*saying(17), "--say", answered), **DIVIDES)
    await daemon.add("a")
    before = (await daemon.get("/models/a")).json["serving"][0]
    assert before["placement"] == "17 of 17 layers on Test 0"
    assert "speed" not in before, "nothing is known of this device's memory"
    assert (await daemon.chat("a")).headers.get("X-Greenroom-Device") is None
    answer = await daemon.post(
        "/v1/chat/completions",
        {"model": "a", "messages": [{"role": "user", "content": "hi"}]},
        X_Greenroom_Explain="1",
    )
    assert answer.headers["X-Greenroom-Device"] == "17/17 on Test 0"

    async def loaded() -> Any:
        # The engine is ready before its output has been read.
        row = await daemon.engine("a")
        return row["loaded"] and row

    row = await until_async(loaded)
    assert (row["where"], row["shortfall"]) == ("17/17 on Test 0", "")
    assert row["loaded"] == {"layers": 17, "total": 17, "size": 17 * MIB}
    (said,) = daemon.events("engine_loaded")
    assert (said["planned"], said["loaded"]["layers"]) == (17, 17)
    assert (await why(daemon))["answer"].endswith("All 17 layers lie on NVIDIA Test 0.")

    async def measured() -> bool:
        return bool((await daemon.engine("a"))["device_measured"] == 17 * MIB)

    # Its driver tells nothing of this process, so its own report counts.
    await until_async(measured)
    for _ in range(2):
        after = (await daemon.get("/models/a")).json["serving"][0]
        assert (after["speed"], after["speed_is"]) == (62.5, "measured")
        await daemon.unload()
    assert daemon.events("engine_exited")[-1]["exit"]["speed"] == 62.5


async def test_an_engine_that_does_not_use_its_device_is_told_at_once_and_serves(machine: Machine) -> None:
    daemon = await machine(200, flags=saying(0), **DIVIDES)
    await daemon.add("a")
    assert (await daemon.chat("a")).status == 200
    row = await daemon.engine("a")
    told = "a has 0 of 17 layers on devices, and 17 were planned."
    assert (row["where"], row["shortfall"]) == ("processor", told)
    told_why = await why(daemon)
    first = "a is computed by the processor, and 17 layers were planned for devices."
    assert (told_why["cause"], told_why["answer"].startswith(first)) == ("layers_missed", True)


async def test_a_model_for_which_a_device_was_full_is_loaded_again_there_once_it_has_room(
    machine: Machine, folder: Path
) -> None:
    # What lies where is all that its engine can do about it: each says that it has loaded what was planned.
    daemon = await machine(600, others=(590,), test_steady="1", **DIVIDES)
    await daemon.add("a")
    assert (await daemon.chat("a")).status == 200
    first = await daemon.engine("a")
    assert first["where"] == "processor"
    assert "No layer lies on a device" in (await why(daemon))["answer"]
    have(folder, (600,), (0,))

    async def moved() -> Any:
        row = await daemon.engine("a")
        return row["pid"] != first["pid"] and row

    row = await until_async(moved)
    assert row["where"] == "17/17 on Test 0"
    (evicted,) = daemon.events("eviction_decided")
    assert (evicted["reason"], evicted["on_devices"], evicted["layers"]) == ("moved", 17, 17)
    told = await why(daemon)
    assert "a was loaded again once it was idle, since devices had room for more of it" in told["answer"]
    assert "17 of its 17 layers are on devices since it was loaded again" in " ".join(told["also"])
    assert (await daemon.chat("a")).status == 200
    have(folder, (600,), (300,))
    await asyncio.sleep(3)  # longer than it takes to be moved: what must not happen has no event
    assert (await daemon.engine("a"))["pid"] == row["pid"]


async def test_a_model_that_requires_a_device_is_refused_when_its_engine_uses_none(machine: Machine) -> None:
    daemon = await machine(200, flags=saying(0), require_device="true", **DIVIDES)
    await daemon.add("a")
    refused = await daemon.chat("a")
    assert (refused.status, refused.error["code"]) == (503, "device_unused")
    assert "has loaded 0 of 17 layers there" in refused.error["message"]
    not_required: Any = {"require-device": False}
    await daemon.configure("a", **not_required)
    assert (await daemon.chat("a")).status == 200


async def test_a_restart_adopts_an_engine_with_its_device(machine: Machine) -> None:
    daemon = await machine(164, gpu_headroom="64MiB")
    await daemon.add("a")
    assert (await daemon.chat("a")).status == 200
    pid = (await daemon.engine("a"))["pid"]
    await daemon.kill()
    await daemon.start()
    assert (await daemon.engine("a"))["pid"] == pid
    (device,) = (await daemon.get("/engines/ledger")).json["devices"]
    assert device["promised"] // MIB == NEED


async def test_a_device_that_goes_away_is_reported_and_not_used_until_it_is_back(
    machine: Machine, folder: Path
) -> None:
    daemon = await machine(200, gpu_headroom="10MiB")
    (found,) = (await daemon.get("/engines/devices")).json["devices"]
    assert (found["id"], found["driver"], found["problem"]) == ("GPU-0", "580.65.06", None)
    (event,) = daemon.events("devices_changed")
    assert ([one["id"] for one in event["after"]], event["stream"]) == (["GPU-0"], "daemon")
    assert "free" not in event["after"][0]

    (folder / "updated").touch()

    async def problem() -> Any:
        (found,) = (await daemon.get("/engines/devices")).json["devices"]
        return found["problem"]

    told = await until_async(problem)
    assert (told["code"], "restart" in told["advice"].lower()) == ("driver_mismatch", True)
    assert "devices" not in (await daemon.get("/engines/ledger")).json
    # After the restart of the machine, which a daemon may sleep through.
    (folder / "updated").unlink()
    again = (await daemon.get("/engines/devices?refresh=true")).json["devices"]
    assert [one["problem"] for one in again if one["id"] == "GPU-0"] == [None]
    await until_async(lambda: _events(daemon, 3))
    gone, back = daemon.events("devices_changed")[1:]
    assert gone["after"][0]["problem"]["code"] == "driver_mismatch"
    assert "problem" not in back["after"][0]


async def test_an_engine_that_ends_with_its_device_is_explained_by_that(
    machine: Machine, folder: Path
) -> None:
    daemon = await machine(200, gpu_headroom="10MiB")
    await daemon.add("a")
    assert (await daemon.chat("a")).status == 200
    (folder / "updated").touch()
    os.kill((await daemon.engine("a"))["pid"], signal.SIGABRT)
    await until_async(lambda: _events(daemon, 2))
    # The processor answers.
    assert (await daemon.chat("a")).status == 200
    told = await why(daemon)
    first = "a runs elsewhere because its graphics device NVIDIA Test 0 was lost at "
    assert (told["cause"], told["answer"].startswith(first)) == ("device_lost", True)
    assert "driver" in told["answer"].partition("was lost at")[2].partition("a is loaded")[0]


async def _events(daemon: Daemon, number: int) -> bool:
    return len(daemon.events("devices_changed")) == number


async def _waits(daemon: Daemon) -> bool:
    queue = (await daemon.get("/engines/queue")).json
    return [one["phase"] for one in queue] == ["waiting_for_memory"]


async def _free(daemon: Daemon, index: int, most: int) -> bool:
    devices = (await daemon.get("/engines/ledger")).json["devices"]
    return bool(devices[index]["free"] // MIB <= most)
