"""Graphics devices with memory of their own: which there are, what is free on each, and who uses it.

NVIDIA's, through `nvidia-smi`, which comes with every driver. A graphics processor that shares the machine's
memory, as on Apple silicon, is none of these: what its engines hold is the machine's.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from greenroom.actors.scheduler.ledger import Device

_log = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds between two looks."""
_NONE_EVERY = 60.0
"""The same where there is none."""
_TOOL_SECONDS = 10.0
_FIRST_LOOK_SECONDS = 3.0
_MIB = 2**20
_DEVICES = ("index", "uuid", "name", "memory.total", "memory.used")
_USERS = ("pid", "gpu_uuid", "used_memory")


@dataclass(frozen=True)
class Card:
    """One line of `nvidia-smi --query-gpu`, in bytes."""

    index: int
    """As programs count devices by their place on the bus."""
    id: str
    name: str
    total: int
    used: int | None
    """None where it is not told."""


class Devices:
    """The devices of this machine, looked at again and again on a thread where there is a driver.

    What is told is what the last look has found; none waits.
    """

    def __init__(self, *, headroom: int, every: float = EVERY) -> None:
        """`headroom` are bytes of each device that engines leave to others."""
        self._headroom = headroom
        self._every = every
        self._tool = ""
        self._cards: tuple[Card, ...] = ()
        self._users: Mapping[int, int] | None = None
        self._measured = False
        self._closed, self._looked = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look, and wait a moment for what is seen first; a driver that hangs keeps nobody."""
        self._closed.clear()
        self._looked.clear()
        self._tool = shutil.which("nvidia-smi") or ""
        if self._tool:
            self._thread = threading.Thread(target=self._run, name="devices", daemon=True)
            self._thread.start()
            self._looked.wait(_FIRST_LOOK_SECONDS)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(2.0)  # a driver that hangs keeps nobody from stopping either

    def now(self) -> tuple[Device, ...]:
        """The pools of memory, as last seen."""
        return tuple(
            Device(
                id=card.id,
                name=card.name,
                total=card.total,
                budget=max(0, card.total - self._headroom),
                available=max(0, card.total - card.used - self._headroom)
                if self._measured and card.used is not None
                else None,
            )
            for card in self._cards
        )

    def used_by(self, pids: Iterable[int]) -> int | None:
        """Bytes of device memory these processes hold together; None where that is not told."""
        users = self._users
        return None if users is None else sum(users.get(pid, 0) for pid in pids)

    def variables(self, device: str) -> dict[str, str] | None:
        """What shows a process this device alone; None when it is not there (any more).

        By number, since not every library understands ids; both count by the place on the bus.
        """
        index = next((card.index for card in self._cards if card.id == device), None)
        if index is None:
            return None
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(index)}

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._look()
            except Exception:  # noqa: BLE001 - one odd answer must not end the watch
                _log.exception("the graphics devices could not be looked at")
            self._looked.set()
            # Without any device it is asked now and then: a driver may be slow, or come later.
            self._closed.wait(self._every if self._cards else _NONE_EVERY)

    def _look(self) -> None:
        told = _told_by(self._tool, f"--query-gpu={','.join(_DEVICES)}")
        if told is None:
            # Those that were there may well be; what is free on them is not known.
            self._measured, self._users = False, None
            return
        self._cards, self._measured = visible(cards_in(told), os.environ.get("CUDA_VISIBLE_DEVICES")), True
        told = _told_by(self._tool, f"--query-compute-apps={','.join(_USERS)}")
        self._users = None if told is None else users_in(told)


def cards_in(told: str) -> tuple[Card, ...]:
    """From the text of `nvidia-smi --query-gpu`, in `csv,noheader,nounits`."""
    cards: list[Card] = []
    for index, uuid, name, total, used in _rows(told, len(_DEVICES)):
        if index.isdigit() and total.isdigit():
            bytes_used = int(used) * _MIB if used.isdigit() else None
            cards.append(Card(int(index), uuid, name, int(total) * _MIB, bytes_used))
    return tuple(cards)


def users_in(told: str) -> dict[int, int] | None:
    """From the text of `nvidia-smi --query-compute-apps`: pid → bytes, on all devices together.

    None when a process is listed without a number: then what is not listed says nothing either.
    """
    users: dict[int, int] = {}
    for pid, _, used in _rows(told, len(_USERS)):
        if not pid.isdigit() or not used.isdigit():
            return None
        users[int(pid)] = users.get(int(pid), 0) + int(used) * _MIB
    return users


def visible(cards: Sequence[Card], allowed: str | None) -> tuple[Card, ...]:
    """Those that the daemon may use, by its `CUDA_VISIBLE_DEVICES`: numbers, or ids or their beginnings.

    As in CUDA itself, what follows the first unknown one does not count.
    """
    if allowed is None:
        return tuple(cards)
    chosen: list[Card] = []
    for word in (word.strip() for word in allowed.split(",")):
        found = [one for one in cards if word == str(one.index) or (word and one.id.startswith(word))]
        if len(found) != 1:
            break
        chosen += found
    return tuple(chosen)


def _rows(told: str, width: int) -> list[list[str]]:
    rows = csv.reader(io.StringIO(told), skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in rows if len(row) == width]


def _told_by(tool: str, query: str) -> str | None:
    try:
        done = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            timeout=_TOOL_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError) as problem:
        _log.debug("nvidia-smi says nothing: %s", problem)
        return None
    return done.stdout.decode("utf-8", "replace")
