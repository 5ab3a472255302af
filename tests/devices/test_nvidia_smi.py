"""What `nvidia-smi` says, in the words it has for it."""

from __future__ import annotations

import pytest

from greenroom.runner.devices.nvidia_smi import SmiCard, cards_in, parts_in, short_bus, users_in

MIB = 2**20
SHORT = """\
0, GPU-5a1f0c2e, NVIDIA GeForce RTX 4090, 24564, 312
1, GPU-77b0aa91, NVIDIA A100-SXM4-80GB, 81920, [N/A]
"""
FULL = """\
0, GPU-5a1f0c2e, NVIDIA GeForce RTX 4090, 24564, 312, 580.65.06, 00000000:01:00.0, [N/A], 8.9
1, GPU-77b0aa91, NVIDIA A100-SXM4-80GB, 81920, 4, 580.65.06, 00000000:C1:00.0, Enabled, 8.0
2, GPU-0d2c9a10, NVIDIA GB10, [N/A], [N/A], 580.65.06, 0000000F:01:00.0, [N/A], 12.1
3, GPU-11111111, NVIDIA L4, [Unknown Error], [Unknown Error], 580.65.06, 00000000:02:00.0, [N/A], 8.9
"""
LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-77b0aa91)
  MIG 3g.20gb     Device  0: (UUID: MIG-1b3a)
  MIG 2g.10gb     Device  1: (UUID: MIG-2c4d)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-88b0aa91)
"""


def test_devices_are_read_with_their_memory_in_bytes() -> None:
    assert cards_in(SHORT, 5) == (
        SmiCard(0, "GPU-5a1f0c2e", "NVIDIA GeForce RTX 4090", 24564 * MIB, 312 * MIB),
        SmiCard(1, "GPU-77b0aa91", "NVIDIA A100-SXM4-80GB", 81920 * MIB, None),
    )


def test_newer_drivers_tell_address_capability_and_division() -> None:
    cards = cards_in(FULL)
    assert [one.bus for one in cards] == ["0000:01:00.0", "0000:c1:00.0", "000f:01:00.0", "0000:02:00.0"]
    assert [one.capability for one in cards] == ["8.9", "8.0", "12.1", "8.9"]
    assert [one.is_divided for one in cards] == [False, True, False, False]
    assert [one.error for one in cards] == ["", "", "", "[Unknown Error]"]
    assert cards[2].total == 0


@pytest.mark.parametrize("told", ["", "No devices were found\n", "0, GPU-1, Some Card, [Unknown Error], 3\n"])
def test_what_is_not_a_device_is_none(told: str) -> None:
    assert cards_in(told, 5) == ()


def test_processes_are_read_with_what_they_hold_on_each_device() -> None:
    assert users_in("41, GPU-5a, 100\n41, GPU-77, 20\n7, GPU-77, 1\n") == {
        "GPU-5a": {41: 100 * MIB},
        "GPU-77": {41: 20 * MIB, 7: MIB},
    }
    assert users_in("") == {}


def test_where_numbers_are_missing_nothing_is_known_of_any_process() -> None:
    assert users_in("41, GPU-5a, 100\n7, GPU-77, [N/A]\n") is None


def test_the_instances_of_a_divided_card_are_listed_below_it() -> None:
    assert parts_in(LISTED) == {0: [("MIG-1b3a", "3g.20gb"), ("MIG-2c4d", "2g.10gb")], 1: []}


@pytest.mark.parametrize(
    ("told", "short"), [("00000000:01:00.0", "0000:01:00.0"), ("0000000F:C1:00.0", "000f:c1:00.0"), ("", "")]
)
def test_addresses_are_written_as_the_kernel_writes_them(told: str, short: str) -> None:
    assert short_bus(told) == short
