"""What `nvidia-smi` says, in the words it has for it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from greenroom.runner.engines import devices as module
from greenroom.runner.engines.devices import Card, Devices, cards_in, users_in, visible

MIB = 2**20
TOLD = """\
0, GPU-5a1f0c2e, NVIDIA GeForce RTX 4090, 24564, 312
1, GPU-77b0aa91, NVIDIA A100-SXM4-80GB, 81920, [N/A]
"""
TWO = cards_in(TOLD)


def test_devices_are_read_with_their_memory_in_bytes() -> None:
    assert (
        Card(0, "GPU-5a1f0c2e", "NVIDIA GeForce RTX 4090", 24564 * MIB, 312 * MIB),
        Card(1, "GPU-77b0aa91", "NVIDIA A100-SXM4-80GB", 81920 * MIB, None),
    ) == TWO


@pytest.mark.parametrize("told", ["", "No devices were found\n", "0, GPU-1, Some Card, [Unknown Error], 3\n"])
def test_what_is_no_device_is_none(told: str) -> None:
    assert cards_in(told) == ()


def test_processes_are_read_with_what_they_hold_on_all_devices_together() -> None:
    assert users_in("41, GPU-5a, 100\n41, GPU-77, 20\n7, GPU-77, 1\n") == {41: 120 * MIB, 7: MIB}
    assert users_in("") == {}


def test_without_numbers_from_the_driver_nothing_is_known_of_any_process() -> None:
    assert users_in("41, GPU-5a, 100\n7, GPU-77, [N/A]\n") is None


@pytest.mark.parametrize(
    ("allowed", "seen"),
    [
        (None, (0, 1)),
        ("1", (1,)),
        ("1,0", (1, 0)),
        ("GPU-77", (1,)),
        ("0,9,1", (0,)),
        ("GPU-", ()),
        ("", ()),
        ("-1", ()),
    ],
)
def test_what_the_daemon_may_not_use_is_not_there(allowed: str | None, seen: tuple[int, ...]) -> None:
    assert tuple(card.index for card in visible(TWO, allowed)) == seen


def test_without_the_tool_there_are_none_and_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    devices = Devices(headroom=0)
    devices.start()
    assert devices.now() == ()
    assert devices.used_by([1]) is None
    assert devices.variables("GPU-1") is None
    devices.close()


def test_a_driver_that_hangs_does_not_block_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_FIRST_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(module, "_TOOL_SECONDS", 0.5)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 600\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    devices = Devices(headroom=0)
    devices.start()
    assert devices.now() == ()
    devices.close()
    assert not [one for one in threading.enumerate() if one.name == "devices"]
