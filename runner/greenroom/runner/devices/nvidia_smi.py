"""NVIDIA's cards as `nvidia-smi` lists them, where its library (NVML) cannot be asked."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

from greenroom.runner.devices.children import Told
from greenroom.runner.devices.host_view import WSL, HostView

_MIB = 2**20
_FORMAT = "--format=csv,noheader,nounits"
_ALWAYS = ("index", "uuid", "name", "memory.total", "memory.used")
_FULL = (*_ALWAYS, "driver_version", "pci.bus_id", "mig.mode.current", "compute_cap")
"""Drivers before 510 do not know all of these, and then answer none."""
_USERS = ("pid", "gpu_uuid", "used_memory")
_CUDA = re.compile(r"CUDA (?:UMD )?Version\s*:\s*([\d.]+)")
_PART = re.compile(r"^\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)]+)\)", re.MULTILINE)
_CARD = re.compile(r"^GPU (\d+): ", re.MULTILINE)


@dataclass(frozen=True)
class SmiCard:
    """One line of `nvidia-smi --query-gpu`, in bytes."""

    index: int
    """By position on the bus."""
    id: str
    name: str
    total: int
    used: int | None
    """None if not reported."""
    driver: str = ""
    bus: str = ""
    is_divided: bool = False
    """MIG is on."""
    capability: str = ""
    error: str = ""
    """What stands in the place of its memory, but that it has none of its own."""


@dataclass(frozen=True)
class SmiAnswer:
    cards: tuple[SmiCard, ...]
    users: Mapping[str, Mapping[int, int]] | None
    """By the id of the card: pid → bytes; None if not reported."""
    told: Told
    """What it printed when it failed."""


def ask(view: HostView) -> SmiAnswer | None:
    """None if there is no such program."""
    program = view.program("nvidia-smi", WSL)
    if not program:
        return None
    told, width = view.run([program, f"--query-gpu={','.join(_FULL)}", _FORMAT], None), len(_FULL)
    if not told.hung and not cards_in(told.output):
        short = view.run([program, f"--query-gpu={','.join(_ALWAYS)}", _FORMAT], None)
        if cards_in(short.output, len(_ALWAYS)):
            told, width = short, len(_ALWAYS)
    cards = cards_in(told.output, width)
    users = None
    if cards:
        listed = view.run([program, f"--query-compute-apps={','.join(_USERS)}", _FORMAT], None)
        users = users_in(listed.output) if listed.is_whole else None
    return SmiAnswer(cards, users, told)


def newest_cuda(view: HostView) -> str:
    """The version in the header of its table, the newest that the driver supports; empty if not there."""
    program = view.program("nvidia-smi", WSL)
    found = _CUDA.search(view.run([program], None).output) if program else None
    return found[1] if found else ""


def parts_of(view: HostView) -> dict[int, list[tuple[str, str]]]:
    """Id and profile (`3g.20gb`) of the parts of each divided card, by the card's index."""
    program = view.program("nvidia-smi", WSL)
    return parts_in(view.run([program, "-L"], None).output) if program else {}


def cards_in(told: str, width: int = len(_FULL)) -> tuple[SmiCard, ...]:
    """Parse `nvidia-smi --query-gpu` in `csv,noheader,nounits`."""
    cards: list[SmiCard] = []
    for index, uuid, name, total, used, *more in _rows(told, width):
        driver, bus, mig, capability = (*more, "", "", "", "")[:4]
        if index.isdigit() and (total.isdigit() or more):
            has_none = total in ("[N/A]", "[Not Supported]", "N/A", "Not Supported")
            cards.append(
                SmiCard(
                    index=int(index),
                    id=uuid,
                    name=name,
                    total=int(total) * _MIB if total.isdigit() else 0,
                    used=int(used) * _MIB if used.isdigit() else None,
                    driver=driver,
                    bus=short_bus(bus),
                    is_divided=mig == "Enabled",
                    capability=capability if capability[:1].isdigit() else "",
                    error="" if total.isdigit() or has_none else total,
                )
            )
    return tuple(cards)


def users_in(told: str) -> dict[str, dict[int, int]] | None:
    """Parse `nvidia-smi --query-compute-apps`: by card, pid → bytes.

    None when a process is listed without a number: then absence from the list means nothing either.
    """
    users: dict[str, dict[int, int]] = {}
    for pid, card, used in _rows(told, len(_USERS)):
        if not pid.isdigit() or not used.isdigit():
            return None
        held = users.setdefault(card, {})
        held[int(pid)] = held.get(int(pid), 0) + int(used) * _MIB
    return users


def parts_in(told: str) -> dict[int, list[tuple[str, str]]]:
    """Parse `nvidia-smi -L`."""
    parts: dict[int, list[tuple[str, str]]] = {}
    starts = [*_CARD.finditer(told)]
    for one, following in zip(starts, [*starts[1:], None], strict=True):
        text = told[one.start() : following.start() if following else None]
        parts[int(one[1])] = [(found[3], found[1]) for found in _PART.finditer(text)]
    return parts


def short_bus(text: str) -> str:
    """`00000000:01:00.0` as the kernel has it: `0000:01:00.0`."""
    domain, colon, rest = text.lower().partition(":")
    return f"{domain[-4:]:0>4}:{rest}" if colon else ""


def _rows(told: str, width: int) -> list[list[str]]:
    rows = csv.reader(io.StringIO(told), skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in rows if len(row) == width]
