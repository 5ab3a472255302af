"""The devices of this machine, read regularly while a daemon runs."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from msgspec.structs import replace as changed

from greenroom.actors.graphics import Graphics
from greenroom.actors.scheduler.ledger import Device
from greenroom.runner.devices import amd, drm, inventory, nvidia
from greenroom.runner.devices.children import Children
from greenroom.runner.devices.continuity import settled
from greenroom.runner.devices.found import Look, Probed, used_by
from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.pci import Controller, controllers
from greenroom.runner.devices.visible import variables

_log = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds between two readings."""
_QUIET_EVERY = 10.0
"""The same while no model is loaded or requested, so that a laptop's card may be switched off; and without a
device, when only files are read."""
_QUIET_AFTER = 30.0
_WHOLE_EVERY = 600.0
"""Seconds after which everything is asked again: a driver may have been installed, or hang no longer."""
_TROUBLED_EVERY = 60.0
"""The same while something is wrong."""
_LASTING = frozenset({"software", "hidden"})
"""Problems that cannot end while this process runs."""
FIRST_LOOK_SECONDS = 3.0
_MODULE = "/proc/driver/nvidia/version"
_SIGNS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri", "/dev/dxg", _MODULE)
"""What appears or goes away with a driver; with the list of the PCI bus it costs less than a millisecond."""


class DeviceWatch:
    """All methods but `start` and `look` return the latest reading without waiting."""

    def __init__(self, *, headroom: int, every: float = EVERY, view: HostView | None = None) -> None:
        """`headroom`: bytes of each device that engines leave free."""
        self._headroom = headroom
        self._every = every
        self._view = view or HostView(run=Children().run)
        self._on_look: Callable[[Graphics], None] | None = None
        self._look = Look()
        self._signs: object = None
        self._looked_at = 0.0
        self._asked_at = time.monotonic()
        self._closed, self._looked = threading.Event(), threading.Event()
        self._looking = threading.RLock()
        self._thread: threading.Thread | None = None

    def look(self, *, software: bool = False) -> Graphics:
        """Ask everything now, which may take seconds. `software`: as in `inventory.read`."""
        with self._looking:
            self._signs = self._read_signs()
            self._look = settled(self._look, inventory.look(self._view, software=software))
            self._looked_at = time.monotonic()
        self._looked.set()
        if self._on_look is not None:
            self._on_look(self._look.graphics)
        return self._look.graphics

    def subscribe(self, told: Callable[[Graphics], None]) -> None:
        """Have `told` called with what is known now, and after everything has been asked again, mostly on the
        watch's own thread. It must not wait.
        """
        self._on_look, last = told, None
        while last is not self._look:
            # A look that ends meanwhile may have told its result before this older one.
            last = self._look
            told(last.graphics)

    def start(self) -> None:
        """Start reading, and wait briefly for the first result; a driver that hangs delays no further."""
        self._closed.clear()
        self._thread = threading.Thread(target=self._run, name="devices", daemon=True)
        self._thread.start()
        self._looked.wait(FIRST_LOOK_SECONDS)

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(2.0)  # a driver that hangs must not delay the exit

    @property
    def graphics(self) -> Graphics:
        return self._look.graphics

    def now(self) -> tuple[Device, ...]:
        """Those that can compute, as pools of memory."""
        self._asked_at = time.monotonic()
        return tuple(
            Device(
                id=one.id,
                name=one.name,
                total=one.total,
                budget=(one.total or sys.maxsize) if one.is_shared else max(0, one.total - self._headroom),
                available=None if one.free is None else max(0, one.free - self._headroom),
                runtimes=tuple(name for name, _ in one.runtimes),
                is_shared=one.is_shared,
            )
            for one in self.graphics.usable
        )

    def used_by(self, pids: Collection[int]) -> int | None:
        """Bytes of devices' own memory that these processes hold together; None if not reported."""
        self._asked_at = time.monotonic()
        found = self._look.found
        buses = {one.device.bus for one in found if one.device.maker != "nvidia" and not one.device.is_shared}
        told = used_by(found, pids)
        if not buses:
            return told
        return (told or 0) + sum(size for bus, size in drm.held_by(pids).items() if bus in buses)

    def variables(self, devices: Sequence[str]) -> dict[str, str] | None:
        """The variables that limit a process to these devices; None if one does not exist (any more)."""
        found = [self._look.of(one) for one in devices]
        chosen: list[Probed] = [one for one in found if one is not None and one.device.problem is None]
        return variables(chosen) if len(chosen) == len(devices) else None

    def _run(self) -> None:
        while True:
            if self._looked.is_set():
                is_quiet = time.monotonic() - self._asked_at > _QUIET_AFTER
                self._closed.wait(self._every if self._look.found and not is_quiet else _QUIET_EVERY)
            if self._closed.is_set():
                return
            try:
                with self._looking:
                    if self._is_new():
                        self.look()
                    else:
                        self._measure()
            except Exception:  # noqa: BLE001 - one odd answer must not end the watch
                _log.exception("the graphics devices could not be read")
                self._looked.set()

    def _is_new(self) -> bool:
        """Whether something appeared or went away, or it is time to ask everything again."""
        graphics = self._look.graphics
        wrong = [one.problem.code for one in graphics.devices if one.problem is not None]
        is_troubled = bool(graphics.problems) or not _LASTING.issuperset(wrong)
        is_due = time.monotonic() - self._looked_at > (_TROUBLED_EVERY if is_troubled else _WHOLE_EVERY)
        return not self._looked.is_set() or is_due or self._read_signs() != self._signs

    def _read_signs(self) -> object:
        listed = [replace(one, asleep=False) for one in controllers(self._view)]
        return listed, [sign for sign in _SIGNS if self._view.exists(sign)], self._view.text(_MODULE)

    def _measure(self) -> None:
        """What is free now. A card that sleeps is left alone: nothing uses it."""
        look, fresh = self._look, dict[str, Probed]()
        listed = {one.bus: one for one in controllers(self._view)}
        cards = [one for one in look.found if one.device.maker == "nvidia" and one.device.problem is None]
        if any(not one.device.is_shared and not _sleeps(one, listed) for one in cards):
            asked = nvidia.ask_again(self._view)
            if asked is None or {one.device.id for one in cards} - {one.device.id for one in asked}:
                self.look()  # why, and whether that is for good
                return
            fresh = {one.device.id: one for one in asked}
        self._look = replace(look, found=tuple(self._measured(one, fresh, listed) for one in look.found))

    def _measured(self, one: Probed, fresh: Mapping[str, Probed], listed: Mapping[str, Controller]) -> Probed:
        device = one.device
        if (new := fresh.get(device.id)) is not None:
            return replace(one, device=changed(device, free=new.device.free), users=new.users)
        if device.maker == "nvidia" and _sleeps(one, listed):
            return replace(one, device=changed(device, free=device.total), users={})
        if device.maker == "amd" and device.total:
            free = amd.memory(self._view, device.bus, is_shared=device.is_shared)[1]
            return replace(one, device=changed(device, free=free))
        return one


def _sleeps(one: Probed, listed: Mapping[str, Controller]) -> bool:
    controller = listed.get(one.device.bus)
    return controller is not None and controller.asleep
