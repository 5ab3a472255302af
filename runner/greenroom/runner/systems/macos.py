"""macOS, through sysctl, libproc and Mach: no child processes are used.

On other systems only the parsing of bytes can be run, so it is separate from the calls that return them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import signal
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_KERN_PROC_PID = (1, 14, 1)
"""CTL_KERN, KERN_PROC, KERN_PROC_PID of <sys/sysctl.h>."""
_KINFO_PROC = 648
"""sizeof(struct kinfo_proc) on 64-bit systems."""
_STOPPED, _ZOMBIE, _TRACED = 4, 5, 0x800
"""SSTOP, SZOMB and P_TRACED of <sys/proc.h>."""
_PROC_PIDTASKINFO, _TASK_INFO = 4, 96
"""The flavour and size of `struct proc_taskinfo` of <sys/proc_info.h>."""
_RUSAGE_INFO_V2 = 2
_PAGE_INS, _FOOTPRINT, _DISK_READ = 4, 7, 16
"""Positions in the 64-bit numbers of `struct rusage_info_v2`, which follow its 16 bytes of uuid."""
_USAGE = struct.Struct("=16s18Q")
_VM_STATISTICS = struct.Struct("=4I9Q2I4Q4IQ")
"""`struct vm_statistics64` of <mach/vm_statistics.h>."""
_HOST_VM_INFO64 = 4
_AT_FDCWD = -2
_LISTENING_SECONDS = 1.0
_TOOL_SECONDS = 5.0


@functools.cache
def boot_id() -> str:
    return sysctl_by_name("kern.bootsessionuuid").rstrip(b"\0").decode("ascii", "replace")


def start_time(pid: int) -> float:
    """Seconds since the epoch, to the microsecond, as recorded then: setting the clock does not change it."""
    return start_of(_sysctl((*_KERN_PROC_PID, pid), _KINFO_PROC), pid)


def start_of(told: bytes, pid: int) -> float:
    """From a `struct kinfo_proc`, which is empty for a process that does not exist.

    Raises:
        OSError: It is an unknown struct.
    """
    if not told:
        return 0.0
    if len(told) < 44 or struct.unpack_from("=i", told, 40)[0] != pid:
        raise OSError(errno.EPROTO, "the kernel describes processes in an unknown way")
    seconds, microseconds = struct.unpack_from("=qi", told)
    return 0.0 if state_of(told) == _ZOMBIE else float(seconds + microseconds / 1e6)


def bytes_read(pid: int) -> int:
    """From disks, by calls or mapped files, and other page-ins."""
    usage = _usage(pid)
    return read_of(usage, os.sysconf("SC_PAGE_SIZE")) if usage else 0


def read_of(usage: bytes, page: int) -> int:
    """From a `struct rusage_info_v2`."""
    numbers = _USAGE.unpack(usage)[1:]
    return int(numbers[_DISK_READ] + numbers[_PAGE_INS] * page)


def resident(pid: int) -> int:
    """The footprint, as Activity Monitor shows it, including what Metal has wired for the process."""
    usage = _usage(pid)
    return footprint_of(usage) if usage else 0


def footprint_of(usage: bytes) -> int:
    """From a `struct rusage_info_v2`."""
    return int(_USAGE.unpack(usage)[1 + _FOOTPRINT])


def own_memory(pid: int) -> int | None:  # noqa: ARG001 - see below
    """The footprint includes files that Metal has wired: it does not tell what a process has grown by."""
    return None


def is_traced(pid: int) -> bool:
    return bool(flags_of(_process(pid)) & _TRACED)


def is_stopped(pid: int) -> bool:
    """SSTOP, and not by a debugger."""
    told = _process(pid)
    return state_of(told) == _STOPPED and not flags_of(told) & _TRACED


def wants_to_work(pid: int) -> bool:
    buffer = ctypes.create_string_buffer(_TASK_INFO)
    told = _libc().proc_pidinfo(pid, _PROC_PIDTASKINFO, ctypes.c_uint64(0), buffer, _TASK_INFO)
    return told == _TASK_INFO and running_of(buffer.raw) > 0


def flags_of(told: bytes) -> int:
    """From a `struct kinfo_proc`; 0 without one."""
    return int(struct.unpack_from("=i", told, 32)[0]) if len(told) >= 44 else 0


def state_of(told: bytes) -> int:
    """From a `struct kinfo_proc`; 0 without one."""
    return told[36] if len(told) >= 44 else 0


def running_of(told: bytes) -> int:
    """From a `struct proc_taskinfo`."""
    return int(struct.unpack_from("=i", told, 88)[0])


def clone(source: int, target: Path) -> bool:
    return bool(_libc().fclonefileat(source, _AT_FDCWD, os.fsencode(target), 0) == 0)


def send_signal(pid: int, started: float, number: int) -> bool:
    """There are no process descriptors here: the process is checked just before."""
    with contextlib.suppress(OSError):
        if start_time(pid) == started:
            os.kill(pid, number)
            return True
    return False


def peer_pid(sock: socket.socket) -> int:
    """<sys/un.h>: SOL_LOCAL is 0, LOCAL_PEERPID 2."""
    with contextlib.suppress(OSError):
        return int(struct.unpack("i", sock.getsockopt(0, 2, 4))[0])
    return 0


def socket_user(own: tuple[str, int], other: tuple[str, int]) -> int | None:  # noqa: ARG001
    """Only the processes themselves tell."""
    return None


def may_be_crowded(error: OSError) -> bool:
    """A full backlog is ECONNREFUSED here, as if there were no listener."""
    return error.errno in (errno.EAGAIN, errno.ECONNREFUSED)


def bind_alone(listener: socket.socket, address: Any) -> None:
    """SO_REUSEADDR would allow binding 127.0.0.1 beside another listener on all addresses.

    Without it a port stays taken for half a minute after its listener has gone. So it is set only if nothing
    answers.
    """
    try:
        listener.bind(address)
    except OSError as problem:
        if problem.errno != errno.EADDRINUSE or _answers(listener.family, address):
            raise
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)


def _answers(family: int, address: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as caller:
        caller.settimeout(_LISTENING_SECONDS)
        try:
            caller.connect(address)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # a slow listener
    return True


def sync_tree(folder: Path) -> None:
    """File by file: `sync` may return before it is done. The commit that follows flushes the drive's own
    cache.
    """
    for place, _, names in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in names)):
            if os.path.islink(path):
                continue
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def available_memory(total: int) -> int | None:
    """What is neither wired, compressed, nor in use by programs: psutil counts cached files as used."""
    told = _vm_statistics()
    return available_of(told, os.sysconf("SC_PAGE_SIZE"), total) if told else None


def available_of(told: bytes, page: int, total: int) -> int:
    """From a `struct vm_statistics64`."""
    numbers = _VM_STATISTICS.unpack(told[: _VM_STATISTICS.size])
    wired, purgeable, compressed, internal = numbers[3], numbers[13], numbers[19], numbers[22]
    used = (max(0, internal - purgeable) + wired + compressed) * page
    return max(0, total - int(used))


def graphics_registry() -> str | None:
    """The I/O registry as text; only read when an engine is suspected to be dead."""
    import subprocess

    argv = ("/usr/sbin/ioreg", "-r", "-c", "IOAccelerator", "-l", "-w", "0")
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_TOOL_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def become_keeper() -> None:
    """There are no subreapers here."""


def die_with_parent() -> None:
    """Launchers watch the keeper's pipe instead."""


def die_first() -> None:
    """The system asks the user which program to end."""


def limit_data(size: int) -> None:
    """Mapped memory does not count here."""


def reap(pid: int) -> tuple[int, Any] | None:
    """Waits for this one child, so that no tool's silence is taken for its death.

    Its pid is free a moment before its group is killed; pids are given out in turn, and no process gets that
    of a group with members.
    """
    done, status, usage = os.wait4(pid, os.WNOHANG)
    if done != pid:
        return None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return status, usage


def halted(pid: int) -> bool | None:
    """Python supports this only since 3.13; before that, the health monitor finds out."""
    system: Any = os
    if not hasattr(system, "waitid"):
        return None
    found = system.waitid(system.P_PID, pid, system.WSTOPPED | system.WCONTINUED | system.WNOHANG)
    return None if found is None else found.si_code == system.CLD_STOPPED


def reap_others(pid: int) -> None:
    """There are none: orphans go to launchd."""


def children() -> Sequence[int]:
    """The keeper has only one child, which it knows."""
    return ()


def peak_bytes(max_rss: int) -> int:
    """It counts bytes."""
    return max_rss


def memory_kills() -> int:
    """Unknown: the system pauses programs and asks the user before it kills any."""
    return 0


def was_killed_for_memory(pid: int, kills_before: int) -> bool:  # noqa: ARG001 - see above
    """Never known."""
    return False


def sysctl_by_name(name: str) -> bytes:
    """A value of the kernel's; empty if there is none of that name."""
    buffer, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    if _libc().sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return b""
    return buffer.raw[: size.value]


def sysctl_number(name: str) -> int:
    """A number of the kernel's; 0 if there is none of that name."""
    return number_of(sysctl_by_name(name))


def number_of(told: bytes) -> int:
    """Little-endian, of four bytes or eight."""
    return int.from_bytes(told, "little") if len(told) in (4, 8) else 0


# system calls


def _sysctl(place: tuple[int, ...], most: int) -> bytes:
    """Raises OSError when the kernel refuses."""
    names = (ctypes.c_int * len(place))(*place)
    buffer, size = ctypes.create_string_buffer(most), ctypes.c_size_t(most)
    failed = _libc().sysctl(names, len(place), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw[: size.value]


def _process(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return _sysctl((*_KERN_PROC_PID, pid), _KINFO_PROC)
    return b""


def _usage(pid: int) -> bytes:
    buffer = ctypes.create_string_buffer(_USAGE.size)
    return buffer.raw if _libc().proc_pid_rusage(pid, _RUSAGE_INFO_V2, buffer) == 0 else b""


def _vm_statistics() -> bytes:
    buffer, count = ctypes.create_string_buffer(512), ctypes.c_uint32(128)
    library = _libc()
    failed = library.host_statistics64(library.mach_host_self(), _HOST_VM_INFO64, buffer, ctypes.byref(count))
    return b"" if failed or count.value * 4 < _VM_STATISTICS.size else buffer.raw


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)  # libSystem includes libproc
