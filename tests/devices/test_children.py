"""Children that ask drivers: they may hang, crash and print garbage, and cost their seconds once."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from greenroom.runner.devices.children import Children, Told
from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.inventory import read

CARD = {
    "/sys/bus/pci/devices/0000:01:00.0/class": "0x030000",
    "/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de",
    "/sys/bus/pci/devices/0000:01:00.0/device": "0x2786",
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22",
    "/dev/nvidiactl": "",
    "/usr/lib64/libnvidia-ml.so.1": "",
}


@pytest.fixture
def machine(tmp_path: Path) -> HostView:
    """One NVIDIA card, and no program that answers."""
    for name, text in CARD.items():
        place = tmp_path / name.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (tmp_path / "sys/bus/pci/devices/0000:01:00.0/driver").symlink_to("../drivers/nvidia")
    return HostView(
        system="linux", root=tmp_path, env={"PATH": "/nowhere"}, run=lambda _, __: Told(code=None)
    )


def test_a_child_that_hangs_is_ended_and_not_started_again_for_a_while(tmp_path: Path) -> None:
    script = tmp_path / "hang"
    script.write_text(f"#!/bin/sh\necho begun >> {tmp_path}/starts\nexec sleep 600\n")
    script.chmod(0o755)
    children = Children(seconds=0.3, again=3600)
    assert children.run([str(script)]).hung
    began = time.monotonic()
    assert children.run([str(script), "--another-question"]).hung
    assert time.monotonic() - began < 0.1
    assert (tmp_path / "starts").read_text() == "begun\n"


def test_a_child_that_hung_is_retried_after_a_while(tmp_path: Path) -> None:
    script = tmp_path / "slow"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o755)
    children = Children(seconds=0.2, again=0.0)
    assert children.run([str(script)]).hung
    script.write_text("#!/bin/sh\necho fine\n")
    assert children.run([str(script)]) == Told(output="fine\n")


def test_what_a_child_prints_without_end_is_cut_and_it_is_ended() -> None:
    noisy = "import sys\nwhile True: print('x' * 1000, file=sys.stderr); print('y' * 1000)"
    told = Children(seconds=0.5).run([sys.executable, "-I", "-S", "-c", noisy])
    assert told.hung
    assert len(told.output) <= 2**20
    assert len(told.errors) <= 4_000


def test_a_program_that_is_not_there_is_an_answer_too() -> None:
    told = Children().run(["/nowhere/nvidia-smi"])
    assert told.code is None
    assert not told.is_whole
    assert "No such file" in told.errors


@pytest.mark.parametrize(
    ("told", "code", "message"),
    [
        (Told(hung=True), "driver_hangs", "NVIDIA's driver did not answer within 10 seconds."),
        (
            Told(code=-11, errors="Segmentation fault"),
            "driver_crashes",
            "NVIDIA's driver failed: the process that asked it was ended by signal 11.",
        ),
        (
            Told(output="<html>"),
            "driver_crashes",
            "NVIDIA's driver failed: the process that asked it gave an answer that makes no sense.",
        ),
    ],
    ids=["hangs", "crashes", "prints garbage"],
)
def test_a_driver_that_fails_is_the_problem_of_its_card(
    machine: HostView, told: Told, code: str, message: str
) -> None:
    (device,) = read(replace(machine, run=lambda _, __: told)).devices
    assert device.problem is not None
    assert (device.problem.code, device.problem.message) == (code, message)
    assert device.driver == "550.54.14"
    assert told.errors in device.problem.detail


def test_a_driver_that_crashes_in_its_own_process_does_no_harm_here(machine: HostView) -> None:
    """The real script, with a library that is none."""
    (device,) = read(replace(machine, run=Children().run)).devices
    assert device.problem is not None
    assert device.problem.code == "driver_incomplete"


def test_a_bug_in_reading_a_machine_is_a_problem_and_ends_nothing(machine: HostView) -> None:
    def broken(*_: object) -> Told:
        raise RuntimeError("odd")

    graphics = read(replace(machine, run=broken))
    assert graphics.devices == ()
    (problem,) = graphics.problems
    assert (problem.code, problem.blame) == ("not_read", "ours")
    assert "RuntimeError: odd" in problem.detail
