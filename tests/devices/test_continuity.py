"""What one look means after another."""

from __future__ import annotations

from msgspec.structs import replace

from greenroom.actors.graphics import GraphicsDevice
from greenroom.actors.values import Failure
from greenroom.runner.devices import problems
from greenroom.runner.devices.children import Told
from greenroom.runner.devices.continuity import settled
from greenroom.runner.devices.found import Look, Probed

CARD = GraphicsDevice(
    id="GPU-1",
    maker="nvidia",
    name="NVIDIA L4",
    total=24,
    free=20,
    bus="0000:01:00.0",
    runtimes=(("cuda", "12"),),
)
BEFORE = Look((Probed(CARD, {"cuda": "0"}, {7: 3}),))
HANGS = problems.driver_hangs("NVIDIA", 10)
MISMATCH = problems.driver_mismatch("1", "2", in_container=False)


def by_bus(problem: Failure) -> Look:
    """The card as the kernel lists it, when its driver says nothing."""
    device = GraphicsDevice(
        id="pci:0000:01:00.0", maker="nvidia", name="NVIDIA 27b8", bus=CARD.bus, problem=problem
    )
    return Look((Probed(device),))


def test_a_driver_that_hangs_once_has_not_lost_its_devices() -> None:
    for now in (Look(problems=(HANGS,)), by_bus(HANGS)):
        after = settled(BEFORE, now)
        (device,) = after.graphics.usable
        assert device == replace(CARD, free=None)
        assert after.found[0].users is None
        assert after.found[0].indexes == {"cuda": "0"}


def test_a_driver_that_cannot_work_any_more_is_the_problem_of_the_device_as_it_was_known() -> None:
    for now in (Look(problems=(MISMATCH,)), by_bus(MISMATCH)):
        graphics = settled(BEFORE, now).graphics
        assert [(one.id, one.name, one.problem) for one in graphics.devices] == [
            ("GPU-1", "NVIDIA L4", MISMATCH)
        ]
        assert not graphics.usable
        assert not graphics.problems


def test_a_device_that_is_no_longer_listed_is_gone() -> None:
    assert settled(BEFORE, Look()).found == ()


def test_the_problem_of_another_makers_driver_leaves_a_device_alone() -> None:
    crash = problems.driver_crashes("Vulkan", Told(code=-11))
    after = settled(BEFORE, Look(BEFORE.found, (crash,)))
    assert after.graphics.usable == (CARD,)
    assert after.problems == (crash,)


def test_a_device_that_is_back_is_as_it_was() -> None:
    gone = settled(BEFORE, by_bus(MISMATCH))
    assert settled(gone, BEFORE).graphics.usable == (CARD,)


def test_what_vulkan_offers_stays_while_it_does_not_answer() -> None:
    both = replace(CARD, runtimes=(("cuda", "12"), ("vulkan", "1.3")))
    before = Look((Probed(both, {"cuda": "0", "vulkan": "1"}),))
    silent = Look((Probed(replace(CARD, free=5), {"cuda": "0"}),), (problems.driver_hangs("Vulkan", 10),))
    (one,) = settled(before, silent).found
    assert (one.device, one.indexes) == (replace(both, free=5), {"cuda": "0", "vulkan": "1"})
    # Without a complaint it is really gone.
    (one,) = settled(before, Look(silent.found)).found
    assert one.device.runtime("vulkan") is None
