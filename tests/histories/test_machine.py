"""What the machine and its files did: the first line of `why` in each of these histories.

74. many requests inside one engine, and others queued for it
75. a request that is queued for a slot
76. stopped for using too much memory
77. stopped for that, and loaded again
78. no daemon can be started: another program has its port
79. the program that is configured for a backend is missing
80. that program is there again
81. its graphics device went away: while not loaded, and loaded elsewhere
82. the journal was set aside
83. another variant of a backend was installed, so models on the old one end
84. the folder of an installation was moved away
85. the disk is full: a load, and a pull
86. configured flags end its engine
87. loaded again for a request's larger context
88. its file was deleted from the store
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.journal.reader import read_journal
from greenroom.runner.cli.live import live_facts
from greenroom.runner.config import load
from greenroom.runner.diagnosis.explain import explain
from greenroom.runner.testing import tiny_gguf
from histories import chatted, reads, request_of, sent
from hub import LocalHub
from mounts import Mounts, NotPermitted
from nvidia_tool import have, put_tool
from toy import make_wheel, sources
from waiting import until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

INSTALL = "POST /engines/install-backend"
CUDA = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="CUDA is on Linux")


async def test_many_are_inside_one_engine_or_queued_for_it(make_told: Any) -> None:
    endless = ("--tokens", "100000", "--token-delay", "0.02")
    daemon = await make_told(*endless, test_slots="2", slots="2")
    await daemon.add("crowd")
    async with daemon.streaming("crowd"), daemon.streaming("crowd"):
        waiting = [asyncio.create_task(daemon.chat("crowd")) for _ in range(2)]

        async def queue() -> Any:
            found = (await daemon.get("/engines/queue")).json
            return len(found) == 2 and found

        first = (await until_async(queue))[0]["request_id"]
        found, asked = await daemon.why("crowd"), await daemon.why(first)
        for one in waiting:
            one.cancel()
    reads(
        found["answer"],
        "crowd is answering 2 requests in 2 slots, 2 requests queued for it{speed}.{waited}",
    )
    assert found["also"][0].startswith("crowd is loaded: engine ")
    reads(
        asked["answer"],
        f"Request {first} to crowd from {{me}} is number 1 in the queue after {{took}}: queued for a slot of "
        "crowd, which has 2.",
    )
    assert asked["also"][0].startswith("Its engine is answering 2 requests in 2 slots, 2 requests queued")


async def test_flags_a_larger_context_and_a_deleted_file(make_told: Any) -> None:
    daemon = await make_told("--tokens", "3", install_policy="never")
    await daemon.add("flagged")
    body = {"model": "flagged", "runtime-flags": ["--die-in-load", "7"], "preload": False}
    configured = await daemon.post("/engines/_configure", body)
    await daemon.chat("flagged")
    found = await daemon.why("flagged")
    reads(
        found["answer"],
        "flagged is not loaded: it could not be loaded at {at}. The fake engine for flagged exited with code "
        "7 while it loaded: it could not load the model it was asked to fail. It was loaded with the flags "
        "--die-in-load 7, which {configured} configured at {clock}.",
        configured=sent(configured, "POST /engines/_configure"),
    )
    assert found["remedies"][0]["command"] == "greenroom configure flagged --reset flags"
    await daemon.post(
        "/engines/_configure", {"model": "flagged", "reset": ["runtime-flags"], "preload": False}
    )

    async def answers() -> bool:
        return bool((await daemon.chat("flagged")).status == 200)

    await until_async(answers)

    await daemon.add_wide("wide")
    await daemon.chat("wide")
    body = {"model": "wide", "stream": False, "messages": [{"role": "user", "content": "x"}]}
    asked = await daemon.post("/api/chat", {**body, "options": {"num_ctx": 16384}})
    line = sent(asked, "POST /api/chat to wide")
    reads(
        await daemon.first_line("wide"),
        "wide is loaded: engine {engine} has served it on fake since {at}, because {asked} needed wide. It "
        "was loaded again because that request asked for a context of 16384 tokens.",
        asked=line,
    )

    await daemon.add("holey")
    for blob in daemon.home.glob("models/blobs/**/*"):
        if blob.is_file() and b"holey" in blob.read_bytes():
            blob.unlink()
    refused = await daemon.chat("holey")
    message = refused.error["message"]
    assert message.count("is damaged") == 1
    assert ". Pull it again: greenroom pull " in message
    reads(
        await daemon.first_line("holey"),
        "holey was in the store until {at}, when it was found damaged: its manifest is missing.",
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="no figure there tells own memory from files")
async def test_it_used_too_much_memory_and_then_no_daemon_can_be_started(make_told: Any) -> None:
    grows = ("--grow-of", "grow", "--grow-to", "1600")
    daemon = await make_told("--tokens", "3", "--for", f"greedy={','.join(grows)}")
    await daemon.add("greedy")
    await daemon.chat("greedy")
    await daemon.chat("greedy", messages=[{"role": "user", "content": "grow"}])
    await daemon.stored("load_failed", "greedy")
    held = (
        "stopped for using too much memory at {at}, {took} after it was ready: it held {size} of memory, "
        "mapped files not counted, and its limit was {size} ({size} was reserved for it, weights included)."
    )
    reads(await daemon.first_line("greedy"), f"greedy is not loaded: its engine was {held}")
    again = await daemon.chat("greedy")
    reads(
        await daemon.first_line("greedy"),
        "greedy is loaded: engine {engine} has served it on fake since {at}, because {again} needed greedy. "
        f"It replaced engine {{engine}}, which was {held}",
        again=chatted(again, "greedy"),
    )

    await daemon.stop()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = load({"home": str(daemon.home), "port": other.getsockname()[1]}, environment={})
        live = await asyncio.to_thread(live_facts, settings)
        found = explain(read_journal(daemon.home / "journal.db"), "daemon", time.time(), live=live)
    reads(
        found.answer,
        "Greenroom is not running: it shut down cleanly at {at}: it was asked to end (SIGTERM). It cannot be "
        "started as it is: Port in use: a program that accepts connections but sends nothing answers at "
        "127.0.0.1:{number} instead of Greenroom{sender}.",
    )
    assert "GREENROOM_PORT=12401" in found.also[0]
    assert not [one for one in found.remedies if one.command == "greenroom serve"], "it would fail"


async def test_a_configured_program_is_missing_and_comes_back(make_told: Any, folder: Path) -> None:
    program = folder / "engine"
    program.write_text("#!/bin/sh\necho version: 7.1\n")
    program.chmod(0o755)
    daemon = await make_told(start=False, test_binary=str(program), install_policy="never")
    await daemon.start()
    await daemon.add("own")
    hidden = program.rename(folder / "hidden")
    verified = (await daemon.post("/engines/verify-backend", {"backend": "fake"})).json
    assert verified[0]["damaged"] == {"external": [f"{program} does not exist"]}
    assert (await daemon.chat("own")).status == 412
    reads(
        await daemon.first_line("fake"),
        "fake cannot be used: {path} does not exist. It is your own, configured in config.toml. Greenroom "
        "noticed that at {at}.",
    )
    reads(
        await daemon.first_line("own"),
        "own is not loaded: requests for it have been refused since {at}: The fake configured in config.toml "
        "cannot be used: {path} does not exist.",
    )

    hidden.rename(program)
    await daemon.post("/engines/verify-backend", {"backend": "fake"})

    async def answers() -> bool:
        return bool((await daemon.chat("own")).status == 200)

    await until_async(answers)
    reads(
        await daemon.first_line("fake"),
        "fake 7.1 has been installed since {at} (installation external). It is your own, configured in "
        "config.toml ({path}); Greenroom never changes it.",
    )


@CUDA
async def test_a_device_goes_away_and_the_journal_is_set_aside(make_told: Any, folder: Path) -> None:
    devices = folder / "nvidia"
    devices.mkdir()
    have(devices, (400,))
    put_tool(devices)
    daemon = await make_told("--tokens", "3", start=False, gpu_headroom="10MiB")
    daemon.env |= {"NVIDIA_FAKE_FOLDER": str(devices), "PATH": f"{devices}{os.pathsep}{os.environ['PATH']}"}
    await daemon.start()
    await daemon.add("placed")
    await daemon.chat("placed")
    (devices / "updated").touch()
    os.kill((await daemon.engine("placed"))["pid"], signal.SIGABRT)
    await until_async(lambda: len(daemon.events("devices_changed")) == 2)
    await daemon.stored("load_failed", "placed")
    lost = (
        "its graphics device NVIDIA Test 0 was lost at {clock}: NVIDIA's library and kernel module are of "
        "different versions: the driver was updated. {advice}"
    )
    reads(
        await daemon.first_line("placed"),
        f"placed is not loaded: {lost} Its engine crashed at {{at}}, {{took}} after it was ready. The fake "
        "engine for placed was killed by SIGABRT.",
    )
    overview = await daemon.why("")
    reads(overview["also"][0], f"- placed is not loaded: {lost}")
    asked = await daemon.chat("placed")
    reads(
        await daemon.first_line("placed"),
        f"placed runs elsewhere because {lost} placed is loaded: engine {{engine}} has served it on fake "
        "since {at}, because {asked} needed placed.",
        asked=chatted(asked, "placed"),
    )

    await daemon.stop()
    (daemon.home / "journal.db").rename(daemon.home / "journal.20261130T000000Z.db")
    await daemon.start()
    reads(
        await daemon.first_line("placed"),
        "placed is not loaded: it has been in the store since {at} (192 B, gguf), where this journal begins, "
        "and has not been requested since.",
    )


@pytest.mark.slow
@CUDA
async def test_another_variant_is_installed_and_its_folder_moved_away(make_told: Any, folder: Path) -> None:
    devices = folder / "cards"
    devices.mkdir()
    daemon = await make_told(toy=True, start=False, test_variants="1", gpu_headroom="10MiB")
    wheels = daemon.home.parent / "wheels"
    make_wheel(wheels)
    path = f"{devices}{os.pathsep}{os.environ['PATH']}"
    daemon.env |= {"NVIDIA_FAKE_FOLDER": str(devices), "PATH": path, **sources(wheels)}
    await daemon.start()

    async def uses(variant: str) -> bool:
        found = (await daemon.get("/engines/toy")).json
        return bool(found["variant"] == variant and not found["job"])

    await until_async(lambda: uses("cpu"))
    assert not [one for one in (await daemon.why("toy"))["also"] if "better variant" in one]
    await daemon.add("mobile")
    await daemon.chat("mobile")
    have(devices, (200,))
    put_tool(devices)
    await daemon.get("/engines/devices?refresh=true")
    asked = await daemon.post("/engines/install-backend", {"backend": "toy", "variant": "cuda"})
    await until_async(lambda: uses("cuda"))
    await daemon.ended("mobile")
    reads(
        await daemon.first_line("toy"),
        "toy cuda 1.0 has been installed since {at} (installation cuda-{installation}). It was installed in "
        "{took} because {asked} asked for it.",
        asked=sent(asked, INSTALL),
    )
    reads(
        await daemon.first_line("mobile"),
        "mobile is not loaded: it was unloaded at {at}, idle, because {asked} installed toy cuda 1.0, which "
        "is in use now: the next request loads it there.",
        asked=sent(asked, INSTALL),
    )

    await daemon.stop()
    (used,) = daemon.home.glob("backends/toy/cuda-*")
    used.rename(folder / "aside")
    await daemon.start()
    reads(
        await daemon.first_line("toy"),
        "toy 1.0 has been installed since {at} (installation {installation}). It was installed in {took} "
        "because it is a default backend. It has been in use since {at}: cuda-{installation}, which had been "
        "in use, was found to be missing (its folder is gone).",
    )


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """A small one."""
    mounts, where = Mounts(), folder / "disk"
    try:
        mounts.small(where, 100)
    except NotPermitted:
        pytest.skip("only who may mount file systems can have a small one: run it as root")
    yield where
    mounts.close()


async def test_the_disk_is_full(make_told: Any, disk: Path) -> None:
    daemon = await make_told("--tokens", "3", start=False)
    daemon.home = disk / "h"
    hub = LocalHub()
    daemon.env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(disk / "hf")}
    await daemon.start()
    with contextlib.closing(hub):
        await daemon.add("homeless")
        data = tiny_gguf(disk / "large.gguf", "large").read_bytes()
        hub.repositories["org/large"] = {"large-Q4_1.gguf": data + b"\0" * 60_000_000}
        asked = await daemon.post("/models/create", {"from": "hf.co/org/large"})
    assert asked.status == 507
    found = await daemon.why("hf.co/org/large")
    reads(
        found["answer"],
        "hf.co/org/large is not in the store: its last pull, for {asked}, failed at {at}. "
        "huggingface.co/org/large needs {size} on the disk, and {path} has {size} free, of which {size} is "
        "reserved for the journal. Free some space: greenroom df shows what uses it. greenroom pull --force "
        "fetches it anyway.",
        asked=sent(asked, "POST /models/create"),
    )
    fill(disk / "ballast")
    answer = await daemon.chat("homeless")
    assert (answer.status, bool(request_of(answer))) == (507, True)
    await daemon.stored("load_failed", "homeless")
    found = await daemon.why("homeless")
    reads(
        found["answer"],
        "homeless is not loaded: it could not be loaded at {at}. The engine could not be started: No space "
        "left on device. Free some space on the disk that holds Greenroom's data directory.",
    )
    assert "greenroom df" in [one["command"] for one in found["remedies"]]
    (disk / "ballast").unlink()
    await daemon.stop()


def fill(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
