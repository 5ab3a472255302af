"""What one look at the machine found, with what only this process needs to know of each device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from msgspec.structs import replace as changed

from greenroom.actors.graphics import Graphics, GraphicsDevice, Runtime
from greenroom.actors.values import Failure


@dataclass(frozen=True)
class Probed:
    """A device, how programs are limited to it, and who uses it."""

    device: GraphicsDevice
    indexes: Mapping[Runtime, str] = field(default_factory=dict[Runtime, str])
    """Its place in each runtime's own list, as the variables that choose devices want it."""
    users: Mapping[int, int] | None = None
    """Pid → bytes of its memory; None if unknown."""
    uuid: str = ""
    """Its maker's own id, if another probe may know it by that: 32 hexadecimal digits."""
    is_software: bool = False
    """It is the processor under another name."""

    def with_problem(self, problem: Failure) -> Probed:
        return replace(self, device=changed(self.device, problem=problem))


@dataclass(frozen=True)
class Look:
    """One look at the machine."""

    found: tuple[Probed, ...] = ()
    problems: tuple[Failure, ...] = ()
    glibc: str = ""

    @property
    def graphics(self) -> Graphics:
        return Graphics(
            devices=tuple(one.device for one in self.found), problems=self.problems, glibc=self.glibc
        )

    def of(self, device: str) -> Probed | None:
        return next((one for one in self.found if one.device.id == device), None)


def used_by(found: Iterable[Probed], pids: Iterable[int]) -> int | None:
    """Bytes that these processes hold on all devices together; None if no such device says."""
    telling = [one.users for one in found if one.users is not None and not one.device.is_shared]
    wanted = frozenset(pids)
    return sum(users.get(pid, 0) for users in telling for pid in wanted) if telling else None
