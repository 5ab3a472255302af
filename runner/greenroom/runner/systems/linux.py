"""Linux: /proc, control groups, and three system calls Python has no names for."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path  # a keeper has no other use for it, and takes a fifth longer to start

assert sys.platform != "darwin"

PROC = "/proc"
CGROUPS = "/sys/fs/cgroup"
KERNEL_LOG = "/dev/kmsg"

_FICLONE = 0x40049409
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_OWN = re.compile(rb"^(?:RssAnon|VmSwap):\s+(\d+) kB", re.MULTILINE)
_VICTIM = 500
"""Of 1000: as if it held half of the machine's memory more. A desktop's programs have 0 to 300."""
_RECENT = 600.0
"""Seconds; older lines are about another process with the same pid. The log's clock drifts a little."""
_SOCK_DIAG = 4
_BY_FAMILY = 20
_REQUEST = 1
_ANY_STATE = 0xFFFFFFFF
_ANY_INTERFACE_AND_COOKIE = bytes(4) + b"\xff" * 8
FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""That of the whole machine: only there are our pids those in the kernel's log."""


@functools.cache
def boot_id() -> str:
    with contextlib.suppress(OSError):
        return _read(f"{PROC}/sys/kernel/random/boot_id").decode("ascii").strip()
    return ""


def start_time(pid: int) -> float:
    """Clock ticks since boot, which do not change when the wall clock is set."""
    try:
        stat = _read(f"{PROC}/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return start_of(stat)


def start_of(stat: bytes) -> float:
    """From `/proc/<pid>/stat`, where the name in brackets may contain anything."""
    fields = stat.rpartition(b") ")[2].split()
    return 0.0 if fields[0] in (b"Z", b"X") else float(fields[19])


def bytes_read(pid: int) -> int:
    """Through calls (`rchar`), from the disk (`read_bytes`: mapped files too), and pages waited for."""
    read = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = _read(f"{PROC}/{pid}/stat").rpartition(b") ")[2].split()
        read += int(fields[9]) * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        for line in _read(f"{PROC}/{pid}/io").splitlines():
            name, _, value = line.partition(b": ")
            if name in (b"rchar", b"read_bytes"):
                read += int(value)
    return read


def resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        pages = _read(f"{PROC}/{pid}/statm").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


def own_memory(pid: int) -> int | None:
    """Anonymous pages, and those that were swapped out."""
    with contextlib.suppress(OSError):
        return own_of(_read(f"{PROC}/{pid}/status"))
    return 0


def own_of(status: bytes) -> int:
    """From `/proc/<pid>/status`; a zombie's has none of these lines."""
    return sum(int(size) * 1024 for size in _OWN.findall(status))


def is_traced(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"{PROC}/{pid}/status", "rb") as file:
        return any(line.startswith(b"TracerPid:") and line.split()[1] != b"0" for line in file)
    return False


def is_stopped(pid: int) -> bool:
    """State T, not t, which is a debugger's."""
    return _state(f"{PROC}/{pid}") == b"T"


def wants_to_work(pid: int) -> bool:
    """States R (running or ready) and D (waiting for a disk)."""
    tasks = f"{PROC}/{pid}/task"
    with contextlib.suppress(OSError):
        return any(_state(f"{tasks}/{task}") in (b"R", b"D") for task in os.listdir(tasks))
    return False


def _state(folder: str) -> bytes:
    with contextlib.suppress(OSError, IndexError):
        return _read(f"{folder}/stat").rpartition(b") ")[2].split()[0]
    return b""


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def peer_pid(sock: socket.socket) -> int:
    """As the kernel recorded it when the other end began to listen."""
    with contextlib.suppress(OSError):
        size = struct.calcsize("3i")
        return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0])
    return 0


def socket_user(own: tuple[str, int], other: tuple[str, int]) -> int | None:
    try:
        uid = _socket_user(own, other)
        if uid == 0:
            # A socket that its program is closing may look like root's for a moment.
            uid = _socket_user(own, other)
        if uid is None and _socket_user(other, own) is None:
            return -1  # cut
    except OSError:
        # A sandbox may not have the call.
        users = _socket_users()
        return users.get((own, other), None if (other, own) in users else -1)
    return uid


def _socket_user(own: tuple[str, int], other: tuple[str, int]) -> int | None:
    """By one question to the kernel, which answers before `send` returns (`sock_diag(7)`)."""
    family = socket.AF_INET6 if ":" in own[0] else socket.AF_INET
    ends = struct.pack(
        "!HH16s16s", own[1], other[1], *(socket.inet_pton(family, one[0]) for one in (own, other))
    )
    asked = (
        struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, _ANY_STATE) + ends + _ANY_INTERFACE_AND_COOKIE
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.setblocking(False)
        kernel.send(struct.pack("=IHHII", 16 + len(asked), _BY_FAMILY, _REQUEST, 1, 0) + asked)
        answer = kernel.recv(4096)
    if struct.unpack_from("=H", answer, 4)[0] != _BY_FAMILY:
        number = -struct.unpack_from("=i", answer, 16)[0]
        if number == errno.ENOENT:
            return None
        raise OSError(number, os.strerror(number))
    uid, inode = struct.unpack_from("=II", answer, 80)
    return int(uid) if inode else -1


def _socket_users() -> dict[tuple[tuple[str, int], tuple[str, int]], int]:
    found = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for row in _read(f"{PROC}/net/{table}").decode("ascii").splitlines()[1:]:
                _, own, other, _, _, _, _, uid, _, inode, *_ = row.split()
                found[_end(own), _end(other)] = int(uid) if inode != "0" else -1
    return found


def _end(told: str) -> tuple[str, int]:
    """`0100007F:1F90`, an address in words of 32 bits in this machine's order, as `127.0.0.1` and 8080."""
    words, _, port = told.partition(":")
    packed = b"".join(
        int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8)
    )
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, packed).removeprefix("::ffff:"), int(port, 16)


def clone(source: int, target: Path) -> bool:
    with target.open("xb") as file:
        try:
            fcntl.ioctl(file, _FICLONE, source)
        except OSError:  # another file system, or one without clones
            target.unlink()
            return False
    return True


def send_signal(pid: int, started: float, number: int) -> bool:
    """Through a descriptor of the process that has the pid now, once its start time matches."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if start_time(pid) != started:
            return False
        signal.pidfd_send_signal(fd, number)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def may_be_crowded(error: OSError) -> bool:
    """A full backlog is EAGAIN."""
    return error.errno == errno.EAGAIN


def bind_alone(listener: socket.socket, address: Any) -> None:
    """Here SO_REUSEADDR does not allow binding beside a listener."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)


def sync_tree(folder: Path) -> None:
    """The whole file system: thousands of small files one by one take far longer."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if not hasattr(library, "syncfs"):
            os.sync()
        elif library.syncfs(handle) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(handle)


def available_memory(total: int) -> int | None:  # noqa: ARG001 - macOS needs it
    """psutil has the kernel's own estimate."""
    return None


def graphics_registry() -> str | None:
    """Drivers report each process separately."""
    return None


def become_keeper() -> None:
    _prctl()(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    _prctl()(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def die_first() -> None:
    """Raising this needs no privilege."""
    with contextlib.suppress(OSError, ValueError):
        path = f"{PROC}/self/oom_score_adj"
        if int(_read(path)) < _VICTIM:
            with open(path, "w", encoding="ascii") as file:
                file.write(str(_VICTIM))


def limit_data(size: int) -> None:
    """Since Linux 4.7 this counts all private memory that a process may write to."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    size = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (size, hard))


@functools.cache
def _prctl() -> Any:
    return ctypes.CDLL(None, use_errno=True).prctl


def reap(pid: int) -> tuple[int, Any] | None:
    """While it is a zombie it holds the number of its group, so no other group is killed."""
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        return None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return status, usage


def halted(pid: int) -> bool | None:
    """A debugger's stops (CLD_TRAPPED) do not count."""
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
    return None if found is None else found.si_code == os.CLD_STOPPED


def reap_others(pid: int) -> None:
    """Orphans of the engine became ours when their parent died."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and found.si_pid != pid:
            os.waitpid(found.si_pid, os.WNOHANG)


def children() -> Sequence[int]:
    with contextlib.suppress(OSError, ValueError):
        return [int(word) for word in _read(f"{PROC}/self/task/{os.getpid()}/children").split()]
    return []


def peak_bytes(max_rss: int) -> int:
    """It counts kibibytes."""
    return max_rss * 1024


def memory_kills() -> int:
    """Kills in our own control group, whether for the group's limit or the whole machine's."""
    with contextlib.suppress(OSError, ValueError):
        for line in os.fsdecode(_read(f"{PROC}/self/cgroup")).splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top = f"{CGROUPS}/memory" if controllers else CGROUPS
            # In a container the path may be the machine's, and ours the top of the visible tree.
            for folder in (f"{top}/{place.lstrip('/')}", top):
                for file in ("memory.events.local", "memory.events", "memory.oom_control"):
                    with contextlib.suppress(OSError):
                        return kills_in(_read(f"{folder}/{file}").decode("ascii"))
    return 0


def kills_in(told: str) -> int:
    """From `memory.events` (version 2) or `memory.oom_control` (version 1)."""
    return next((int(line.split()[1]) for line in told.splitlines() if line.startswith("oom_kill ")), 0)


def was_killed_for_memory(pid: int, kills_before: int) -> bool:
    """The kernel's log names the process, where it is readable; otherwise only our own control group
    counts.
    """
    with contextlib.suppress(OSError):
        if os.readlink(f"{PROC}/self/ns/pid") == FIRST_PID_NAMESPACE:
            return names_victim(_kernel_log(), pid, time.clock_gettime(time.CLOCK_BOOTTIME))
    return memory_kills() > kills_before


def names_victim(log: str, pid: int, now: float) -> bool:
    """Whether the kernel's log says that this process was killed for lack of memory in the last minutes.

    A line of it, with microseconds: `3,1287,512345678,-;Out of memory: Killed process 4711 (python3) …`.
    """
    found = re.findall(rf"^\d+,\d+,(\d+),[^;]*;.*\bKill(?:ed)? process {pid}[ ,(]", log, re.MULTILINE)
    return any(int(at) / 1e6 > now - _RECENT for at in found)


def _kernel_log() -> str:
    fd = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK)
    lines = []
    try:
        while True:
            try:
                lines.append(os.read(fd, 8192))
            except BlockingIOError:
                return b"".join(lines).decode("utf-8", "replace")
            except BrokenPipeError:
                continue  # the ring has turned meanwhile: the next line is the oldest
    finally:
        os.close(fd)
