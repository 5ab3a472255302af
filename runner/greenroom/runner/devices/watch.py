"""The devices of this machine, read regularly while a daemon runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

from greenroom.actors.graphics import Graphics, Runtime
from greenroom.actors.scheduler.ledger import Device
from greenroom.runner.devices import inventory
from greenroom.runner.devices.children import Children
from greenroom.runner.devices.continuity import settled
from greenroom.runner.devices.found import Look, Probed, used_by
from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.visible import variables

_log = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds between two readings."""
_NONE_EVERY = 60.0
"""The same without a device."""
_FIRST_LOOK_SECONDS = 3.0


class DeviceWatch:
    """All methods but `start` return the latest reading without waiting."""

    def __init__(self, *, headroom: int, every: float = EVERY, view: HostView | None = None) -> None:
        """`headroom`: bytes of each device that engines leave free."""
        self._headroom = headroom
        self._every = every
        self._children = Children()
        self._view = view or HostView(run=self._children.run)
        self._look = Look()
        self._closed, self._looked = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> Graphics:
        """Look now, which may take seconds."""
        self._look = settled(self._look, inventory.look(self._view))
        self._looked.set()
        return self._look.graphics

    def start(self) -> None:
        """Start reading, and wait briefly for the first result; a driver that hangs delays no further."""
        self._closed.clear()
        self._thread = threading.Thread(target=self._run, name="devices", daemon=True)
        self._thread.start()
        self._looked.wait(_FIRST_LOOK_SECONDS)

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(2.0)  # a driver that hangs must not delay the exit

    @property
    def graphics(self) -> Graphics:
        return self._look.graphics

    def now(self, runtime: Runtime | None = None) -> tuple[Device, ...]:
        """Those with memory of their own, as pools of it; with `runtime`, those that offer it."""
        return tuple(
            Device(
                id=one.id,
                name=one.name,
                total=one.total,
                budget=max(0, one.total - self._headroom),
                available=None if one.free is None else max(0, one.free - self._headroom),
            )
            for one in self.graphics.usable
            if not one.is_shared and (runtime is None or one.runtime(runtime) is not None)
        )

    def used_by(self, pids: Iterable[int]) -> int | None:
        """Bytes of device memory these processes hold together; None if not reported."""
        return used_by(self._look.found, pids)

    def variables(self, devices: Sequence[str]) -> dict[str, str] | None:
        """The variables that limit a process to these devices; None if one does not exist (any more)."""
        found = [self._look.of(one) for one in devices]
        chosen: list[Probed] = [one for one in found if one is not None and one.device.problem is None]
        return variables(chosen) if len(chosen) == len(devices) else None

    def _run(self) -> None:
        while True:
            if self._looked.is_set():
                self._closed.wait(self._every if self._look.found else _NONE_EVERY)
            if self._closed.is_set():
                return
            try:
                self.look()
            except Exception:  # noqa: BLE001 - one odd answer must not end the watch
                _log.exception("the graphics devices could not be read")
                self._looked.set()
