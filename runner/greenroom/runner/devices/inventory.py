"""One look at all graphics devices of the machine."""

from __future__ import annotations

from greenroom.actors.graphics import Graphics
from greenroom.runner.devices import nvidia
from greenroom.runner.devices.found import Look
from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.pci import controllers
from greenroom.runner.devices.visible import allowed


def read(view: HostView | None = None) -> Graphics:
    """What is there and can compute, or why it cannot. Raises nothing.

    It may take seconds: a driver that hangs costs ten.
    """
    return look(view or HostView()).graphics


def look(view: HostView) -> Look:
    """The same, with what this process needs to limit engines to devices."""
    listed = controllers(view)
    found, problems = nvidia.look(view, listed)
    return Look(allowed(found, view.env), problems, view.glibc)
