"""One look at all graphics devices of the machine."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence

from greenroom.actors.graphics import Graphics
from greenroom.actors.values import Failure
from greenroom.runner.devices import amd, apple, intel, jetson, nvidia, problems, vulkan
from greenroom.runner.devices.found import Look, Probed
from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.pci import Controller, controllers
from greenroom.runner.devices.visible import VULKAN, allowed
from greenroom.runner.devices.vulkan import VulkanLook
from greenroom.runner.threads import Beside

_log = logging.getLogger(__name__)

_SIGNS = ("/dev/dri", "/dev/dxg", "/dev/nvidiactl", "/dev/nvmap")


def read(view: HostView | None = None, *, software: bool = False) -> Graphics:
    """What is there and can compute, or why it cannot. Raises nothing.

    It may take seconds: a driver that hangs costs ten. `software`: list drivers that are the processor under
    another name even if there is nothing else.
    """
    return look(view or HostView(), software=software).graphics


def look(view: HostView, *, software: bool = False) -> Look:
    """The same, with what this process needs to limit engines to devices."""
    try:
        return _look(view, software=software)
    except Exception:  # noqa: BLE001 - an odd machine must not keep a daemon from starting
        _log.exception("the graphics devices could not be read")
        return Look(problems=(problems.not_read(traceback.format_exc()),), glibc=view.glibc)


def _look(view: HostView, *, software: bool) -> Look:
    if view.system == "darwin":
        return Look(apple.look(view))
    listed = controllers(view)
    is_asked = software or _may_have_vulkan(view, listed)
    asked = Beside(lambda: vulkan.look(view), "vulkan") if is_asked else None
    boards = jetson.look(view)
    cards, troubles = ((), ()) if boards else nvidia.look(view, listed)
    radeons, compute_troubles = amd.look(view, listed)
    found = (*boards, *cards, *radeons, *intel.look(view, listed))
    offered = asked.result() if asked is not None else VulkanLook()
    merged = vulkan.merged(found, offered, view)
    explained = tuple(_explained(one, offered, compute_troubles) for one in merged)
    told = {one.device.problem for one in explained}
    compute_troubles = tuple(one for one in compute_troubles if one not in told)
    passing = (offered.problem,) if offered.problem is not None else ()
    return Look(allowed(explained, view.env), (*troubles, *compute_troubles, *passing), view.glibc)


def _may_have_vulkan(view: HostView, listed: Sequence[Controller]) -> bool:
    """Without a device there is nothing to gain but software, and loading all drivers costs time."""
    return VULKAN in view.env or bool(listed) or any(view.exists(sign) for sign in _SIGNS)


def _explained(one: Probed, offered: VulkanLook, compute: Sequence[Failure]) -> Probed:
    """A device that no runtime reaches has a problem, even if its kernel driver has none.

    `compute`: why AMD's compute driver cannot be used.
    """
    device = one.device
    if device.problem is not None or device.runtimes:
        return one
    if compute and device.maker == "amd":
        return one.with_problem(compute[0])
    return one.with_problem(offered.problem or problems.no_runtime(device.maker, offered.has_loader))
