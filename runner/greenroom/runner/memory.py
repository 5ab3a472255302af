"""How much memory engines may use: the machine's, or less if a container or service has a limit.

Linux limits memory by nested control groups, version 1 or 2; each group from ours up to the top counts.
Everything is read from files, so tests provide their own tree.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from greenroom.actors.scheduler.ledger import Memory
from greenroom.actors.values import BackendFacts
from greenroom.runner.config import DEFAULT_HEADROOM, Settings
from greenroom.runner.devices.apple import metal_limit
from greenroom.runner.devices.watch import DeviceWatch
from greenroom.runner.engines.memory_bound import MemoryLeft
from greenroom.runner.models.preflight import Machine, Reader
from greenroom.runner.systems import here, macos

_log = logging.getLogger(__name__)

_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
"""What the kernel reclaims before it kills a process, by name in `memory.stat`."""
_V1_NAMES = {f"total_{name}": name for name in _RECLAIMABLE}
"""Version 1 includes nested groups only under these names."""
_LOOK_AGAIN = 10.0
"""Seconds between two searches for our control groups."""
_HEADROOM_SHARE = 8
"""The default headroom is at most this fraction of the memory: 500 MB may be all of a small container."""


class MachineMemory(NamedTuple):
    """One reading, in bytes."""

    total: int
    """The machine's, or our limit."""
    available: int
    """What new programs can use without swapping, or up to the limit."""
    limited_by: str = ""
    """The control group with the smallest limit; empty if none is below the machine's memory."""

    metal: int | None = None
    """What Apple's graphics processors can use of it at once; None on other machines."""

    def left(self, headroom: int, *, is_default: bool) -> int:
        """Bytes to leave to everything but engines."""
        return min(headroom, self.total // _HEADROOM_SHARE) if is_default else headroom

    def budget(self, left: int) -> int:
        """What engines may use by default."""
        most = max(0, self.total * 9 // 10 - left)
        return most if self.metal is None else min(most, self.metal)


class MemoryReader:
    """Reads the memory; a reading that fails repeats the last one.

    Too many open files or a strange kernel must not stop requests from being served.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._groups: tuple[Group, ...] = ()
        self._look_again = 0.0
        self._last: MachineMemory | None = None
        self._failing = False

    def now(self) -> MachineMemory:
        try:
            self._last = self._read()
            self._failing = False
        except (OSError, psutil.Error) as error:
            if not self._failing:
                _log.warning("the machine's memory cannot be read now: %s", error)
            self._failing = True
        if self._last is None:
            # Needs no open file.
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return MachineMemory(total, total)
        return self._last

    def _read(self) -> MachineMemory:
        machine = psutil.virtual_memory()
        total, limited_by = int(machine.total), ""
        told = here.available_memory(total)
        available = int(machine.available) if told is None else told
        if time.monotonic() >= self._look_again:
            # Our groups change only when we are moved; their limits and use are read each time.
            self._groups = tuple(memory_groups(self._root))
            self._look_again = time.monotonic() + _LOOK_AGAIN
        for group in self._groups:
            limit = group.limit()
            if limit is None or limit >= machine.total:
                continue
            if limit < total:
                total, limited_by = limit, str(group.folder)
            available = min(available, max(0, limit - group.used()))
        return MachineMemory(total, available, limited_by, _metal(int(machine.total)))


class EngineMemory:
    """What engines may use of this machine, by the settings: of its memory and of its graphics devices."""

    def __init__(
        self,
        settings: Settings,
        devices: DeviceWatch,
        facts: Sequence[BackendFacts] = (),
        reader: MemoryReader | None = None,
    ) -> None:
        self._settings = settings
        self._devices = devices
        self._facts = facts
        self._reader = reader or MemoryReader()

    @property
    def available(self) -> int:
        """Bytes that new programs can use."""
        return self._reader.now().available

    @property
    def budget(self) -> int:
        """Bytes that engines may use in all."""
        return self._budget(self._reader.now())

    def budget_for(self, backend: str) -> int:
        """Bytes one engine of this backend may use at most: of a graphics device if it computes there, of all
        devices and memory if it can divide a model between them.
        """
        own = [one for one in self._devices.now() if not one.is_shared]
        facts = next((one for one in self._facts if one.name == backend), None)
        if facts is not None and facts.divides:
            reached = {runtime for _, runtime in facts.runtimes}
            return self.budget + sum(one.budget for one in own if reached & set(one.runtimes))
        devices = [one for one in own if "cuda" in one.runtimes]
        if devices and facts is not None and facts.device:
            return max(one.budget for one in devices)
        return self.budget

    def machine(self) -> Machine:
        """What a model must fit to be of use here."""
        readers = [Reader(one.name, one.formats, one.overhead, one.verdict) for one in self._facts]
        most = max([self.budget, *(self.budget_for(one.name) for one in self._facts)])
        return Machine(memory=most, readers=tuple(readers))

    def reading(self) -> Memory:
        """What is free now, without what is left to others."""
        now = self._reader.now()
        available = max(0, now.available - self._left(now))
        return Memory(budget=self._budget(now), available=available, devices=self._devices.now())

    def left(self) -> MemoryLeft:
        """What is free now, and what should be left to others."""
        now = self._reader.now()
        return MemoryLeft(available=now.available, headroom=self._left(now))

    def _budget(self, memory: MachineMemory) -> int:
        budget = self._settings.memory_budget
        return memory.budget(self._left(memory)) if budget is None else budget

    def _left(self, memory: MachineMemory) -> int:
        """Bytes to leave to the rest of the machine, or of the container."""
        headroom = self._settings.headroom
        return memory.left(headroom, is_default=headroom == DEFAULT_HEADROOM)


class Group(NamedTuple):
    folder: Path
    version: int

    def limit(self) -> int | None:
        """Bytes it may use; None if unlimited."""
        names = ("memory.max", "memory.high") if self.version == 2 else ("memory.limit_in_bytes",)
        found = [number for name in names if (number := _number(self.folder / name)) is not None]
        return min(found, default=None)

    def used(self) -> int:
        """Bytes in use that cannot be reclaimed."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        usage = _number(self.folder / name) or 0
        return max(0, usage - self._reclaimable())

    def _reclaimable(self) -> int:
        found: dict[str, int] = {}
        for line in _text(self.folder / "memory.stat").splitlines():
            name, _, value = line.partition(" ")
            if self.version == 1:
                name = _V1_NAMES.get(name, "")
            if name in _RECLAIMABLE and value.strip().isdigit():
                found[name] = int(value)
        return sum(found.values())


def memory_groups(root: Path) -> Iterator[Group]:
    """The control groups that can limit this process's memory, from its own up to the topmost visible one."""
    paths = _own_paths(_text(root / "proc/self/cgroup"))
    for version, mounted_part, mount in _mounts(_text(root / "proc/self/mountinfo")):
        if version not in paths:
            continue
        top = root / mount.lstrip("/")
        inside = _inside(paths[version], mounted_part)
        folder = top / inside
        while True:
            yield Group(folder, version)
            if folder == top:
                break
            folder = folder.parent


def _own_paths(text: str) -> dict[int, str]:
    """Our groups' paths in `/proc/self/cgroup`, by version."""
    paths: dict[int, str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[2] = path
        elif "memory" in controllers.split(","):
            paths[1] = path
    return paths


def _mounts(text: str) -> Iterator[tuple[int, str, str]]:
    """Version, mounted part and mount point of each memory hierarchy in `/proc/self/mountinfo`."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == "cgroup2":
            yield 2, _unescaped(fields[3]), _unescaped(fields[4])
        elif kinds[0] == "cgroup" and "memory" in kinds[2].split(","):
            yield 1, _unescaped(fields[3]), _unescaped(fields[4])


def _inside(path: str, mounted_part: str) -> str:
    """Our group relative to the mount point.

    A container may see only its own group as the whole tree, under its path outside; a path that is not below
    the mounted part means the mount point itself.
    """
    parts = [part for part in path.split("/") if part]
    above = [part for part in mounted_part.split("/") if part]
    if ".." in parts or parts[: len(above)] != above:
        return ""
    return "/".join(parts[len(above) :])


def _unescaped(text: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, letter)
    return text


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    """A file's text; empty if there is none, since older kernels lack some."""
    try:
        return file.read_text("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""


def _metal(total: int) -> int | None:
    machine = os.uname()
    if (machine.sysname, machine.machine) != ("Darwin", "arm64"):
        return None
    return metal_limit(total, macos.sysctl_number("iogpu.wired_limit_mb"))
