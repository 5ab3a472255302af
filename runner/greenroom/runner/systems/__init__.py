"""What depends on the operating system, and processes on either.

`here` is the module of this system; both have the functions of `System`, and `make check` type-checks both.
These three modules use the standard library only, since keepers use them too.

- `linux`, `macos`: one for each operating system, with the same functions
- `processes`: which process one is, what a group of them uses, and what state they are in
- `peer_processes`: which process has the other end of a connection
- `programs`: runs a program to its end, bounded in time and output
- `packages`: which package of the system has what a program misses
- `disk_room`: the room on a disk, and what is dropped to make more of it
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path


class System(Protocol):
    """The functions of each module."""

    def boot_id(self) -> str:
        """Changes with every boot, so that an old pid never matches a new process; "" if unknown."""
        ...

    def start_time(self, pid: int) -> float:
        """Kernel start time of a process, only compared for equality; 0.0 for none, or a zombie.

        Raises:
            OSError: It cannot be read now, which means nothing.
        """
        ...

    def bytes_read(self, pid: int) -> int:
        """Bytes a process has read so far, through calls or mapped files; 0 if unknown."""
        ...

    def resident(self, pid: int) -> int:
        """Bytes a process holds in memory, as the system displays them; 0 if unknown."""
        ...

    def own_memory(self, pid: int) -> int | None:
        """Bytes that a process alone holds, in memory or swapped out, without the pages of files: the system
        can drop those. 0 for no such process; None where the system's figures do not tell them apart."""
        ...

    def is_traced(self, pid: int) -> bool:
        """Whether a debugger holds a process; False if unknown."""
        ...

    def is_stopped(self, pid: int) -> bool:
        """Whether a signal has stopped a process; False if unknown."""
        ...

    def wants_to_work(self, pid: int) -> bool:
        """Whether a thread of a process is running, ready to run, or waiting for a disk."""
        ...

    def clone(self, source: int, target: Path) -> bool:
        """Make a copy of an open file that takes no space until one of both changes; False where that cannot
        be done, and then there is none."""
        ...

    def send_signal(self, pid: int, started: float, number: int) -> bool:
        """Signal the process with this pid and start time, or none; True if it was sent."""
        ...

    def peer_pid(self, sock: socket.socket) -> int:
        """Pid of the process at the other end of a unix socket; 0 if unknown."""
        ...

    def socket_user(self, own: tuple[str, int], other: tuple[str, int]) -> int | None:
        """Id of the user whose program has this end of a TCP connection of this machine open, its own end
        first; -1 if the program has closed it, None if it is not of this machine or the system does not tell.
        Takes no thread: some hundredths of a millisecond."""
        ...

    def may_be_crowded(self, error: OSError) -> bool:
        """Whether a unix socket may have refused a connection only because its backlog is full."""
        ...

    def bind_alone(self, listener: socket.socket, address: Any) -> None:
        """Bind a TCP socket, even soon after the last one closed, but never beside another listener.

        Raises:
            OSError: EADDRINUSE and others.
        """

    def sync_tree(self, folder: Path) -> None:
        """Write everything below a folder to the disk. A later commit must be flushed separately.

        Raises:
            OSError: It cannot be written.
        """

    def available_memory(self, total: int) -> int | None:
        """Bytes that programs could use without swapping; None where psutil's figure is right."""

    def graphics_registry(self) -> str | None:
        """The system's text about users of graphics processors; "" if unavailable, None if there is no such
        registry. Costs some milliseconds."""

    # only for keepers

    def become_keeper(self) -> None:
        """Have orphans of the engine become our children, where the system can do that."""

    def die_with_parent(self) -> None:
        """In a child: end with the parent, where the system can do that."""

    def die_first(self) -> None:
        """In a child: be killed before others when memory runs out, where the system lets us choose."""

    def limit_data(self, size: int) -> None:
        """In a child: refuse it more than so many bytes of memory of its own, where the system counts them.

        Mapped files do not count, and neither does address space that is only reserved.
        """

    def reap(self, pid: int) -> tuple[int, Any] | None:
        """Status and usage of our child once it has ended, and its process group with it; else None."""

    def halted(self, pid: int) -> bool | None:
        """Whether a signal has just stopped our child (True) or continued it (False); None for no change."""

    def reap_others(self, pid: int) -> None:
        """Reap our ended children except this one."""

    def children(self) -> Sequence[int]: ...

    def peak_bytes(self, max_rss: int) -> int:
        """Bytes out of `ru_maxrss`."""
        ...

    def memory_kills(self) -> int:
        """How often processes like ours were killed for lack of memory; for comparison only."""
        ...

    def was_killed_for_memory(self, pid: int, kills_before: int) -> bool:
        """Whether this process, killed a moment ago, was killed for lack of memory.

        `kills_before` is `memory_kills` of some seconds ago.
        """
        ...


here: System
if sys.platform == "darwin":
    from greenroom.runner.systems import macos

    here = macos
else:
    from greenroom.runner.systems import linux

    here = linux
