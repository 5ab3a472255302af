"""What one look means after another: a driver that does not answer once has not lost its devices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from msgspec.structs import replace as changed

from greenroom.actors.graphics import GraphicsDevice, Maker
from greenroom.actors.values import Failure
from greenroom.runner.devices.found import Look, Probed

_PASSING = frozenset({"driver_hangs", "driver_crashes", "driver_failed"})
"""Problems that may be over at the next look."""
_DRIVERS: Mapping[Maker, str] = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Vulkan", "other": "Vulkan"}
"""What messages call the driver that lists a maker's devices."""


def settled(before: Look, now: Look) -> Look:
    """The later look, with what it could not say taken from the one before.

    A device keeps its id when its driver no longer tells it. If a driver fails in a way that may pass, its
    devices stay, and nothing is known of what is free on them. If it fails for good, they stay with the
    problem, so that its user sees what happened to which device.
    """
    by_bus = {one.device.bus: one for one in before.found if one.device.bus}
    found = [_renamed(one, by_bus.get(one.device.bus)) for one in now.found]
    there = {one.device.id for one in found}
    problems = list(now.problems)
    for one in before.found:
        trouble = next((why for why in now.problems if _is_about(why, one.device)), None)
        if one.device.id in there or trouble is None:
            continue
        found.append(_unmeasured(one) if trouble.code in _PASSING else one.with_problem(trouble))
        problems = [why for why in problems if why is not trouble]
    is_silent = any(why.code in _PASSING and "Vulkan" in why.message for why in now.problems)
    return Look(tuple(_spared(found, before, is_silent)), tuple(problems), now.glibc)


def _renamed(one: Probed, before: Probed | None) -> Probed:
    """By the id that it had, and with what its driver said of it while it still answered."""
    if before is None or before.device.id == one.device.id or not one.device.id.startswith("pci:"):
        return one
    old = before.device
    return replace(one, device=changed(one.device, id=old.id, name=old.name, total=old.total))


def _spared(found: Iterable[Probed], before: Look, is_silent: bool) -> Iterator[Probed]:
    """A device whose driver fails in a way that may pass is used on.

    `is_silent`: Vulkan has not answered, so that it offers as much as before.
    """
    for one in found:
        old, problem = before.of(one.device.id), one.device.problem
        if old is None or old.device.problem is not None:
            yield one
        elif problem is not None:
            yield _unmeasured(old) if problem.code in _PASSING else one
        elif is_silent and "vulkan" in old.indexes and "vulkan" not in one.indexes:
            yield replace(old, device=changed(old.device, free=one.device.free), users=one.users)
        else:
            yield one


def _unmeasured(one: Probed) -> Probed:
    return replace(one, device=changed(one.device, free=None), users=None)


def _is_about(problem: Failure, device: GraphicsDevice) -> bool:
    return device.maker in _DRIVERS and _DRIVERS[device.maker] in problem.message
