"""`greenroom devices`: the table, what is wrong below it, and the line of `greenroom status`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from greenroom.runner.cli.devices import line, picture


def device(name: str, **more: Any) -> dict[str, Any]:
    usual = {
        "id": name,
        "maker": "nvidia",
        "name": name,
        "memory": 12 * 10**9,
        "memory_free": 11 * 10**9,
        "shared": False,
        "driver": "580.65.06",
        "runtimes": {"cuda": "13.0"},
        "target": "8.9",
        "bus": "0000:01:00.0",
        "used_by": [],
        "problem": None,
    }
    return {**usual, **more}


def user(backend: str, variant: str = "", reason: str = "", *, installed: bool = False) -> dict[str, Any]:
    return {"backend": backend, "variant": variant or None, "installed": installed, "reason": reason}


def problem(code: str, message: str, advice: str = "") -> dict[str, str]:
    return {"code": code, "message": message, "advice": advice, "detail": ""}


def told(*devices: dict[str, Any], problems: tuple[dict[str, str], ...] = ()) -> str:
    return picture({"devices": list(devices), "problems": list(problems), "glibc": "2.36"})


def test_a_table_has_memory_driver_and_users_and_marks_what_is_not_installed() -> None:
    users = [
        user("llama.cpp", "cu128", installed=True),
        user("mlx", "cuda"),
        user("vllm", reason="It is too old."),
    ]
    assert told(device("L4", used_by=users)) == (
        "DEVICE  MEMORY   FREE     DRIVER     COMPUTES WITH    USED BY\n"
        "L4      12.0 GB  11.0 GB  580.65.06  CUDA 13.0 (8.9)  llama.cpp (cu128), mlx (cuda)*\n"
        "* not installed; to install it: greenroom install-runner mlx\n"
        "L4: vllm cannot use it. It is too old."
    )


def test_what_holds_for_two_devices_of_a_kind_is_said_once() -> None:
    users = [user("llama.cpp", reason="It is too old."), user("mlx", reason="It is too old.")]
    shown = told(device("L4", used_by=users), device("L4", used_by=users))
    assert shown.count("L4: llama.cpp and mlx cannot use it. It is too old.") == 1
    assert "none" in shown


def test_a_device_that_cannot_be_used_says_why_and_what_to_do() -> None:
    broken = device("L4", problem=problem("driver_mismatch", "They differ.", "Restart the computer."))
    assert told(broken).endswith("L4: They differ. Restart the computer.")
    assert line(broken) == "L4: cannot be used. They differ. Restart the computer."


def test_without_a_device_its_absence_and_what_may_hide_one_are_told() -> None:
    assert told() == "No graphics device was found: models run on the processor."
    assert told(problems=(problem("driver_hangs", "It hangs."),)).endswith("\nIt hangs.")


def test_software_has_a_line_only_where_there_is_nothing_else() -> None:
    software = device("llvmpipe", problem=problem("software", "It is the processor."))
    assert "llvmpipe" not in told(device("L4"), software)
    assert "llvmpipe: It is the processor." in told(software)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "L4: 12.0 GB, 11.0 GB free"),
        ({"memory_free": None, "shared": True}, "L4: 12.0 GB of the machine's memory"),
        ({"memory": 0, "memory_free": None}, "L4: memory of unknown size"),
    ],
)
def test_a_device_fits_in_a_line(fields: dict[str, Any], text: str) -> None:
    assert line(device("L4", **fields)) == text


def test_without_a_daemon_this_machine_is_looked_at(
    greenroom: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENROOM_PORT", "1")  # no daemon has it
    shown = greenroom("devices", "--json")
    assert shown.code == 0
    assert set(json.loads(shown.out)) == {"devices", "problems", "glibc"}
