"""A card that appears while the daemon runs: its variant is offered, fetched by `run`, and taken into use."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nvidia_tool import have, put_tool
from toy import make_wheel, sources
from waiting import until_async
from wedge import Daemon

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="CUDA is on Linux")


@pytest.fixture
async def daemon(make_daemon: Any, place: Path) -> Daemon:
    """It has the processor's variant of its backend, and finds no card yet."""
    daemon: Daemon = await make_daemon(
        toy=True, start=False, test_variants="1", keep_alive="10m", gpu_headroom="10MiB"
    )
    folder = place / "nvidia"
    folder.mkdir()
    make_wheel(daemon.home.parent / "wheels")
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    daemon.env |= {"NVIDIA_FAKE_FOLDER": str(folder), "PATH": path, **sources(daemon.home.parent / "wheels")}
    await daemon.start()
    await until_async(lambda: _installed(daemon, "cpu"))
    return daemon


async def _toy(daemon: Daemon) -> Any:
    return (await daemon.get("/engines/toy")).json


async def _installed(daemon: Daemon, variant: str) -> bool:
    found = await _toy(daemon)
    return bool(found["variant"] == variant and not found["job"])


async def greenroom(daemon: Daemon, *arguments: str) -> tuple[str, str]:
    """What a command writes to standard output and standard error, spaces and line ends made one."""
    command = [sys.executable, "-m", "greenroom.runner.cli", "--home", str(daemon.home), *arguments]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env={**os.environ, "GREENROOM_PORT": daemon.url.rpartition(":")[2]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split()), " ".join(done.stderr.split())


async def plug_in(daemon: Daemon) -> None:
    folder = Path(daemon.env["NVIDIA_FAKE_FOLDER"])
    have(folder, (200,))
    put_tool(folder)
    devices = (await daemon.get("/engines/devices?refresh=true")).json["devices"]
    (found,) = (one for one in devices if one["id"] == "GPU-0")
    assert found["used_by"] == [
        {"backend": "toy", "variant": "cuda", "installed": False, "reason": "It runs on the NVIDIA Test 0."}
    ]


async def test_a_card_that_appears_is_offered_and_not_forced(daemon: Daemon) -> None:
    assert (await _toy(daemon))["offered"] == ""
    await plug_in(daemon)

    async def offered() -> bool:
        return bool((await _toy(daemon))["offered"] == "cuda")

    await until_async(offered)
    first, second = daemon.events("variants_ranked")
    assert [one["usable"] for one in first["variants"]] == [True, False]
    assert (second["variants"][0]["name"], second["devices"]) == ("cuda", ["NVIDIA Test 0 (580.65.06)"])
    assert "cuda would be better" in (await greenroom(daemon, "status"))[0]
    # The card is not that of this process, which lists the backends of this release alone.
    told, _ = await greenroom(daemon, "why", "toy")
    assert "cuda has been the better variant for this machine: It runs on the NVIDIA Test 0." in told
    assert (await _toy(daemon))["variant"] == "cpu", "nothing is fetched without a word"
    assert len(daemon.events("install_requested")) == 1

    (Path(daemon.env["NVIDIA_FAKE_FOLDER"]) / "nvidia-smi").unlink()
    await daemon.get("/engines/devices?refresh=true")
    await until_async(lambda: _not_offered(daemon))


async def _not_offered(daemon: Daemon) -> bool:
    return bool((await _toy(daemon))["offered"] == "")


async def test_run_says_what_it_fetches_for_the_card_and_when_that_answers(daemon: Daemon) -> None:
    await daemon.add("a")
    answered, told = await greenroom(daemon, "run", "a", "hi")
    assert (bool(answered), "Downloading" in told, "now serves" in told) == (True, False, False)
    await plug_in(daemon)

    answered, told = await greenroom(daemon, "run", "a", "hi")
    assert answered, "it does not wait for the download"
    # Its wheel is that of the other variant here, whatever size is declared.
    assert told.startswith(
        "Downloading toy cuda in the background, from the cache: It runs on the NVIDIA Test 0. "
        "Until then cpu serves requests; models switch when they are idle."
    )
    await until_async(lambda: _installed(daemon, "cuda"))
    # The engine on the other variant ends once it is idle. Where the installation is the faster, that has
    # happened before the second run asks, and it is that run which tells.
    await until_async(lambda: _serves_no_other_than(daemon, "cuda"))
    _, next_told = await greenroom(daemon, "run", "a", "hi")
    changed = "toy cuda now serves requests instead of cpu. It runs on the NVIDIA Test 0."
    assert [told.count(changed), next_told.count(changed)] in ([0, 1], [1, 0])
    _, told = await greenroom(daemon, "run", "a", "hi")
    assert ("now serves" in told, "Downloading" in told) == (False, False)


async def _serves_no_other_than(daemon: Daemon, variant: str) -> bool:
    return all(one["installation"].startswith(f"{variant}-") for one in await daemon.engines())
