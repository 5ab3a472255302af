"""Intel's devices, as far as the kernel lists them; what they offer is known to Vulkan."""

from __future__ import annotations

from collections.abc import Sequence

from greenroom.actors.graphics import GraphicsDevice
from greenroom.actors.values import Failure
from greenroom.runner.devices import problems
from greenroom.runner.devices.containers import in_container
from greenroom.runner.devices.drm import device_files_problem, kernel_driver
from greenroom.runner.devices.found import Probed
from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.pci import Controller, name_of

_INTEGRATED = "0000:00:02.0"
"""Where Intel's processors have their own graphics, always."""


def look(view: HostView, controllers: Sequence[Controller]) -> tuple[Probed, ...]:
    return tuple(_probed(view, one) for one in controllers if one.maker == "intel")


def _probed(view: HostView, one: Controller) -> Probed:
    device = GraphicsDevice(
        id=f"pci:{one.bus}",
        maker="intel",
        name=name_of(view, one),
        is_shared=one.bus == _INTEGRATED,
        driver=kernel_driver(view, one.driver),
        bus=one.bus,
        problem=_problem(view, one),
    )
    return Probed(device)


def _problem(view: HostView, one: Controller) -> Failure | None:
    if not one.driver:
        return problems.driver_not_loaded("Intel", "i915", in_container=in_container(view))
    if one.driver.startswith(("vfio", "xen", "pci-stub")):
        return problems.device_reserved(one.driver)
    return device_files_problem(view, one, "Intel", "--device /dev/dri")
