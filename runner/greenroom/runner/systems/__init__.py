"""What depends on the operating system, behind one module for each.

Standard library only, since keepers use it too. `here` is the module of this system; both have the functions
of `System`, and `make check` type-checks both.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from greenroom.runner.systems import macos


class System(Protocol):
    """What each module offers."""

    def boot_id(self) -> str:
        """Changes with every boot, so that a pid of before is never taken for one of now; "" if unknown."""
        ...

    def start_time(self, pid: int) -> float:
        """Kernel start time of a process, only compared for equality; 0.0 when there is none, or a zombie.

        Raises:
            OSError: It cannot be told now, which means nothing.
        """
        ...

    def bytes_read(self, pid: int) -> int:
        """Bytes a process has read so far, through calls or by touching mapped files; 0 when unknown."""
        ...

    def resident(self, pid: int) -> int:
        """Bytes a process holds in memory, as the system shows them to people; 0 when unknown."""
        ...

    def is_traced(self, pid: int) -> bool:
        """Whether a debugger holds a process; False when unknown."""
        ...

    def is_stopped(self, pid: int) -> bool:
        """Whether a signal has stopped a process; False when unknown."""
        ...

    def wants_to_work(self, pid: int) -> bool:
        """Whether a thread of a process computes, would if the machine let it, or waits for a disk."""
        ...

    def send_signal(self, pid: int, started: float, number: int) -> bool:
        """Signal the process with this pid and start time, or nobody; True when it was sent."""
        ...

    def peer_pid(self, sock: socket.socket) -> int:
        """Pid of the process at the other end of a unix socket; 0 where it cannot be told."""
        ...

    def may_be_crowded(self, error: OSError) -> bool:
        """Whether a unix socket refuses a connection perhaps only because its backlog is full."""
        ...

    def bind_alone(self, listener: socket.socket, address: Any) -> None:
        """Bind a TCP socket, also soon after the last one closed, but never beside somebody who listens.

        Raises:
            OSError: EADDRINUSE and others.
        """
        ...

    def sync_tree(self, folder: Path) -> None:
        """Hand everything below a folder to the disk. What is committed after it must be forced to it.

        Raises:
            OSError: It cannot be written.
        """
        ...

    def available_memory(self, total: int) -> int | None:
        """Bytes that programs could take without swapping; None where psutil's figure is right."""
        ...

    def graphics_registry(self) -> str | None:
        """What the system knows of its graphics processors' users; "" when it does not say, None where there
        is no such registry. Costs some milliseconds."""
        ...

    # what only keepers need

    def become_keeper(self) -> None:
        """Orphans of the engine become our children, where the system can do that."""
        ...

    def die_with_parent(self) -> None:
        """In a child: end when the parent does, where the system can do that."""
        ...

    def reap(self, pid: int) -> tuple[int, Any] | None:
        """Status and usage of our child once it has ended, its process group ended with it; else None."""
        ...

    def halted(self, pid: int) -> bool | None:
        """Whether a signal has just stopped our child (True) or continued it (False); None: no news."""
        ...

    def reap_others(self, pid: int) -> None:
        """Let go of our children that have ended, but for this one."""
        ...

    def children(self) -> Sequence[int]:
        """Living children of ours."""
        ...

    def peak_bytes(self, max_rss: int) -> int:
        """Bytes out of `ru_maxrss`."""
        ...

    def memory_kills(self) -> int:
        """How often processes like ours were ended for want of memory; compared only."""
        ...

    def was_killed_for_memory(self, pid: int, kills_before: int) -> bool:
        """Whether this process, killed a moment ago, was ended for want of memory.

        `kills_before` is `memory_kills` of some seconds ago.
        """
        ...


_MACOS: System = macos  # checked on every system, and importable for its tests
here: System
if sys.platform == "darwin":
    here = macos
else:
    from greenroom.runner.systems import linux

    here = linux
