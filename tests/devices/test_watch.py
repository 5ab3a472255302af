"""The devices as a daemon reads them while it runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from greenroom.runner.devices import watch as module
from greenroom.runner.devices.children import Children
from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.watch import DeviceWatch
from waiting import until

MIB = 2**20
ROWS = """\
0, GPU-5a1f0c2e, NVIDIA GeForce RTX 4090, 24564, 312, 580.65.06, 00000000:01:00.0, [N/A], 8.9
1, GPU-77b0aa91, NVIDIA A100-SXM4-80GB, 81920, [N/A], 580.65.06, 00000000:C1:00.0, [N/A], 8.0
"""

Machine = Callable[..., HostView]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """`machine(script, CUDA_VISIBLE_DEVICES="1")`: only an `nvidia-smi`, which is this shell script."""

    def make(script: str = "exit 9", *, seconds: float = 10.0, **env: str) -> HostView:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir()
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
        return HostView(
            system="linux", root=tmp_path, env={"PATH": path, **env}, run=Children(seconds=seconds).run
        )

    return make


def two(tmp_path: Path) -> str:
    (tmp_path / "rows").write_text(ROWS)
    return f'case "$1" in --query-gpu=*) cat {tmp_path}/rows;; *) exit 1;; esac'


def seen(view: HostView) -> list[str]:
    watch = DeviceWatch(headroom=12 * MIB, view=view)
    watch.look()
    return [one.id for one in watch.now()]


def test_each_device_is_a_pool_with_what_is_free_on_it(machine: Machine, tmp_path: Path) -> None:
    watch = DeviceWatch(headroom=12 * MIB, view=machine(two(tmp_path)))
    watch.look()
    first, second = watch.now()
    assert (first.id, first.name) == ("GPU-5a1f0c2e", "NVIDIA GeForce RTX 4090")
    numbers = (first.total, first.budget, first.available)
    assert numbers == (24564 * MIB, 24552 * MIB, (24564 - 312 - 12) * MIB)
    assert second.available is None
    assert ("cuda" in first.runtimes, first.is_shared) == (True, False)


def test_an_engine_is_limited_to_devices_by_their_place(machine: Machine, tmp_path: Path) -> None:
    watch = DeviceWatch(headroom=0, view=machine(two(tmp_path)))
    watch.look()
    found = watch.variables(["GPU-77b0aa91"])
    assert found is not None
    assert (found["CUDA_DEVICE_ORDER"], found["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "1")
    assert watch.variables(["GPU-77b0aa91", "GPU-gone"]) is None


def test_an_engine_for_the_processor_sees_no_device(machine: Machine, tmp_path: Path) -> None:
    watch = DeviceWatch(headroom=0, view=machine(two(tmp_path)))
    watch.look()
    found = watch.variables([])
    assert found is not None
    assert {name: value for name, value in found.items() if "VISIBLE" in name} == {
        "CUDA_VISIBLE_DEVICES": "-1",
        "ROCR_VISIBLE_DEVICES": "-1",
        "HIP_VISIBLE_DEVICES": "-1",
        "GGML_VK_VISIBLE_DEVICES": "",
    }


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (None, ["GPU-5a1f0c2e", "GPU-77b0aa91"]),
        ("1", ["GPU-77b0aa91"]),
        ("1,0", ["GPU-77b0aa91", "GPU-5a1f0c2e"]),
        ("GPU-77", ["GPU-77b0aa91"]),
        ("0,9,1", ["GPU-5a1f0c2e"]),
        ("GPU-", []),
        ("", []),
        ("-1", []),
    ],
)
def test_devices_that_a_variable_hides_from_the_daemon_are_not_used(
    machine: Machine, tmp_path: Path, value: str | None, left: list[str]
) -> None:
    env: Mapping[str, str] = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    view = machine(two(tmp_path), **env)
    assert seen(view) == left


def test_without_a_tool_or_a_card_no_device_is_found(tmp_path: Path) -> None:
    watch = DeviceWatch(headroom=0, view=HostView(system="linux", root=tmp_path, env={"PATH": "/nowhere"}))
    watch.start()
    assert watch.graphics.devices == ()
    assert watch.now() == ()
    assert watch.used_by([1]) is None
    assert watch.variables(["GPU-1"]) is None
    watch.close()


def test_a_driver_that_hangs_does_not_delay_a_start(
    monkeypatch: pytest.MonkeyPatch, machine: Machine
) -> None:
    monkeypatch.setattr(module, "FIRST_LOOK_SECONDS", 0.05)
    before = set(threading.enumerate())
    watch = DeviceWatch(headroom=0, view=machine("exec sleep 600", seconds=0.3))
    watch.start()
    assert watch.now() == ()
    watch.close()
    until(lambda: before.issuperset(threading.enumerate()))
