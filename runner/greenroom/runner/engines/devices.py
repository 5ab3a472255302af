"""Graphics devices with memory of their own: which exist, what is free on each, and who uses it.

NVIDIA's, through `nvidia-smi`, which comes with every driver. A graphics processor that shares the machine's
memory, as on Apple silicon, is none of these: what its engines hold is the machine's.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from greenroom.actors.scheduler.ledger import Device
from greenroom.runner.systems import here

_log = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds between two readings."""
_NONE_EVERY = 60.0
"""The same without a device."""
_TOOL_SECONDS = 10.0
_FIRST_LOOK_SECONDS = 3.0
_FORMAT = "--format=csv,noheader,nounits"
_MIB = 2**20
_DEVICES = ("index", "uuid", "name", "memory.total", "memory.used")
_USERS = ("pid", "gpu_uuid", "used_memory")


PROC = Path("/proc")
_BUSY_PERCENT = 2

_FDINFO = re.compile(
    rb"^(drm-client-id|drm-pdev|drm-(?:engine|cycles)-(?!capacity)[\w-]+):\s*(\S+)", re.MULTILINE
)
_CREATOR = re.compile(r'"IOUserClientCreator" = "pid (\d+),')
_USED = re.compile(r'"accumulatedGPUTime"\s*=\s*(\d+)')


@dataclass(frozen=True)
class Card:
    """One line of `nvidia-smi --query-gpu`, in bytes."""

    index: int
    """By position on the bus."""
    id: str
    name: str
    total: int
    used: int | None
    """None if not reported."""


class Devices:
    """The devices of this machine, read regularly on a thread if there is a driver.

    All methods return the latest reading without waiting.
    """

    def __init__(self, *, headroom: int, every: float = EVERY) -> None:
        """`headroom`: bytes of each device that engines leave free."""
        self._headroom = headroom
        self._every = every
        self._tool = ""
        self._cards: tuple[Card, ...] = ()
        self._users: Mapping[int, int] | None = None
        self._measured = False
        self._closed, self._looked = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start reading, and wait briefly for the first result; a driver that hangs delays no further."""
        self._closed.clear()
        self._looked.clear()
        self._tool = shutil.which("nvidia-smi") or ""
        if self._tool:
            self._thread = threading.Thread(target=self._run, name="devices", daemon=True)
            self._thread.start()
            self._looked.wait(_FIRST_LOOK_SECONDS)

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(2.0)  # a driver that hangs must not delay the exit

    def now(self) -> tuple[Device, ...]:
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
        """Bytes of device memory these processes hold together; None if not reported."""
        users = self._users
        return None if users is None else sum(users.get(pid, 0) for pid in pids)

    def variables(self, device: str) -> dict[str, str] | None:
        """The variables that limit a process to this device; None if it does not exist (any more).

        By index, since not every library understands ids; both count by position on the bus.
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
                _log.exception("the graphics devices could not be read")
            self._looked.set()
            # Without a device it is checked rarely: a driver may be slow, or be installed later.
            self._closed.wait(self._every if self._cards else _NONE_EVERY)

    def _look(self) -> None:
        told = _output_of(self._tool, f"--query-gpu={','.join(_DEVICES)}", _FORMAT)
        if told is None:
            # The known devices may still exist; what is free on them is unknown.
            self._measured, self._users = False, None
            return
        self._cards, self._measured = visible(cards_in(told), os.environ.get("CUDA_VISIBLE_DEVICES")), True
        told = _output_of(self._tool, f"--query-compute-apps={','.join(_USERS)}", _FORMAT)
        self._users = None if told is None else users_in(told)


def cards_in(told: str) -> tuple[Card, ...]:
    """Parse `nvidia-smi --query-gpu` in `csv,noheader,nounits`."""
    cards: list[Card] = []
    for index, uuid, name, total, used in _rows(told, len(_DEVICES)):
        if index.isdigit() and total.isdigit():
            bytes_used = int(used) * _MIB if used.isdigit() else None
            cards.append(Card(int(index), uuid, name, int(total) * _MIB, bytes_used))
    return tuple(cards)


def users_in(told: str) -> dict[int, int] | None:
    """Parse `nvidia-smi --query-compute-apps`: pid → bytes, on all devices together.

    None when a process is listed without a number: then absence from the list means nothing either.
    """
    users: dict[int, int] = {}
    for pid, _, used in _rows(told, len(_USERS)):
        if not pid.isdigit() or not used.isdigit():
            return None
        users[int(pid)] = users.get(int(pid), 0) + int(used) * _MIB
    return users


def visible(cards: Sequence[Card], allowed: str | None) -> tuple[Card, ...]:
    """Those the daemon may use, by its `CUDA_VISIBLE_DEVICES`: indexes, ids, or prefixes of ids.

    As in CUDA itself, the list ends at the first unknown entry.
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


def _output_of(*argv: str) -> str | None:
    try:
        done = subprocess.run(
            argv, capture_output=True, timeout=_TOOL_SECONDS, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as problem:
        _log.debug("%s failed: %s", argv[0], problem)
        return None
    return done.stdout.decode("utf-8", "replace")


# graphics processor time, read only when an engine is suspected to be dead: it may cost some milliseconds


def gpu_seconds(pids: Collection[int]) -> float | None:
    """Seconds of graphics processor time used since the processes started; None if there may be some that
    cannot be measured.

    Linux: each open file of a DRM driver counts for its client, in `/proc/<pid>/fdinfo` (kernel docs:
    "DRM client usage stats"). NVIDIA's driver does not, hence `gpu_busy`. macOS: the accelerator's user
    clients count in the I/O registry, by pid (`AppUsage`, nanoseconds).

    Drivers that count cycles are read as if each took a nanosecond: only growth matters.
    """
    told = here.graphics_registry()
    if told is not None:
        return registry_seconds(told, pids) if told else None
    if (PROC / "driver/nvidia/version").exists():
        return None
    return drm_seconds(pids)


def gpu_busy(pids: Collection[int]) -> bool:
    """Whether NVIDIA's driver reports them at work right now."""
    if not (PROC / "driver/nvidia/version").exists():
        return False
    told = _output_of("nvidia-smi", "pmon", "-c", "1", "-s", "u")
    return told is not None and pmon_busy(told, pids)


def drm_seconds(pids: Collection[int]) -> float:
    """From the open files of DRM drivers; 0.0 without any."""
    used: dict[tuple[bytes, bytes, bytes], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for file in (PROC / str(pid) / "fdinfo").iterdir():
                with contextlib.suppress(OSError):
                    fields = dict(_FDINFO.findall(file.read_bytes()))
                    client = (fields.get(b"drm-pdev", b""), fields.get(b"drm-client-id", b""))
                    for name, value in fields.items():
                        # Several files may belong to one client and repeat its numbers.
                        if name.startswith((b"drm-engine-", b"drm-cycles-")) and value.isdigit():
                            used[*client, name] = int(value)
    return sum(used.values()) / 1e9


def registry_seconds(told: str, pids: Collection[int]) -> float:
    """From the output of `ioreg`: one node per user client, each beginning with `+-o`."""
    used = 0
    for node in told.split("+-o "):
        creator = _CREATOR.search(node)
        if creator is not None and int(creator[1]) in pids:
            used += sum(int(number) for number in _USED.findall(node))
    return used / 1e9


def pmon_busy(told: str, pids: Collection[int]) -> bool:
    """From the output of `nvidia-smi pmon`: gpu, pid, type and the load of its multiprocessors in per
    cent.
    """
    for line in told.splitlines():
        words = [*line.split(), "", "", "", ""]
        pid, load = words[1], words[3]
        if pid.isdigit() and int(pid) in pids and load.isdigit() and int(load) > _BUSY_PERCENT:
            return True
    return False
