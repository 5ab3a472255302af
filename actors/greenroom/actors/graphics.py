"""Graphics devices of a machine as actors, clients and the log know them. Sizes are bytes."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from greenroom.actors.values import Fact, Failure

Maker = Literal["nvidia", "amd", "intel", "apple", "other"]
Runtime = Literal["cuda", "rocm", "vulkan", "metal"]
"""What programs compute through."""


class GraphicsDevice(Fact, frozen=True, kw_only=True):
    """A device that can compute, or could if its problem were solved."""

    id: str
    """Stable over restarts of the machine: NVIDIA's own `GPU-…`, else `pci:0000:03:00.0`, else made of maker
    and name."""
    maker: Maker
    name: str
    """For people, such as `NVIDIA GeForce RTX 4070`."""
    total: int = 0
    """Its memory; 0 if unknown. Of a device that shares the machine's, the part it may use."""
    free: int | None = None
    """None if it cannot be measured."""
    is_shared: bool = False
    """It computes in the machine's memory, which the ledger then counts once."""
    driver: str = ""
    """Version of its kernel driver."""
    runtimes: tuple[tuple[Runtime, str], ...] = ()
    """What its driver offers, each with the newest version that it supports, such as `("cuda", "13.0")`."""
    target: str = ""
    """What code must be compiled for: a compute capability such as `8.9`, or `gfx1100`."""
    bus: str = ""
    """Its PCI address, `0000:03:00.0`; empty if it is on none."""
    problem: Failure | None = None
    """Why nothing can compute on it, with what to do."""

    @property
    def lasting(self) -> GraphicsDevice:
        """Without what changes from one reading to the next."""
        problem = None if self.problem is None else replace(self.problem, detail="")
        return replace(self, free=None, problem=problem)

    @property
    def is_idle_software(self) -> bool:
        """It is the processor under another name, and the user has not asked to use it."""
        return self.problem is not None and self.problem.code == "software"

    def runtime(self, name: Runtime) -> str | None:
        """The newest version that its driver supports; None if it does not offer it."""
        return dict(self.runtimes).get(name)


class Graphics(Fact, frozen=True, kw_only=True):
    """What one look at the machine found."""

    devices: tuple[GraphicsDevice, ...] = ()
    problems: tuple[Failure, ...] = ()
    """What hides devices that this cannot name: a driver that hangs, a library that does not match it."""
    glibc: str = ""
    """Version of the C library, `2.36`; empty on macOS and musl."""

    @property
    def lasting(self) -> Graphics:
        """Without what changes from one reading to the next, and without software that nothing uses."""
        return replace(
            self,
            devices=tuple(one.lasting for one in self.devices if not one.is_idle_software),
            problems=tuple(replace(one, detail="") for one in self.problems),
        )

    @property
    def usable(self) -> tuple[GraphicsDevice, ...]:
        return tuple(one for one in self.devices if one.problem is None)
