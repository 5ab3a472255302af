"""Machines that people have reported, played through the inventory; beside each is what we make of it.

python tests/devices/test_machines.py     writes that again, to be read before it is committed
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from greenroom.runner.backends.device_users import described
from greenroom.runner.cli.devices import picture
from greenroom.runner.devices.inventory import read
from recorded_machine import recorded

MACHINES = Path(__file__).parent / "machines"
NAMES = sorted(file.stem for file in MACHINES.glob("*.toml"))


def shown(name: str, root: Path) -> str:
    view = recorded(MACHINES / f"{name}.toml", root)
    return f"{picture(described(read(view, software=True), {}))}\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_machine_has_the_devices_and_problems_beside_it(name: str, tmp_path: Path) -> None:
    assert shown(name, tmp_path) == (MACHINES / f"{name}.txt").read_text("utf-8")


def test_the_recorded_machines_are_of_every_kind() -> None:
    assert len(NAMES) >= 18


if __name__ == "__main__":
    for one in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            (MACHINES / f"{one}.txt").write_text(shown(one, Path(folder)), "utf-8")
