"""What depends on the system: Linux as it is, macOS by the bytes that its kernel gives."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from greenroom.actors.journal import fsync as disk
from greenroom.runner.engines import keeper
from greenroom.runner.engines.handle import take_pulse
from greenroom.runner.systems import here, macos
from greenroom.runner.systems import linux as linux_module
from greenroom.runner.systems.processes import ProcessIdentity

linux: Any = linux_module
"""To a type checker on another system it is empty."""

STAT = (
    b"4711 (a) b) c) %c 1 4711 4711 0 -1 4194560 2511 0 21 0 12 3 0 0 20 0 1 0 8675309 109445120 2511 "
    b"18446744073709551615 1 1 0 0 0 0 0 16781312 16386 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0"
)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of our own."""
    monkeypatch.setattr(linux, "PROC", tmp_path)
    (tmp_path / "4711").mkdir()
    (tmp_path / "4711" / "stat").write_bytes(STAT % b"S")
    return tmp_path


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A child that sleeps, leader of a group."""
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield child
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    child.returncode = 0  # as if it had been reaped


# Linux


def test_a_start_time_is_read_after_any_process_name(proc: Path) -> None:
    assert linux.start_time(4711) == 8675309.0
    (proc / "4711" / "stat").write_bytes(STAT % b"Z")
    assert linux.start_time(4711) == 0.0
    assert linux.start_time(99) == 0.0


def test_a_process_that_cannot_be_looked_at_is_not_taken_for_dead(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = ProcessIdentity.of(sleeper.pid)

    def fail(pid: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("greenroom.runner.systems.processes.start_time", fail)
    assert identity is not None
    assert identity.alive()
    monkeypatch.setattr(linux, "start_time", fail)
    assert not identity.send(signal.SIGKILL), "who it is is not known, so it is not signalled"
    assert sleeper.poll() is None


def test_bytes_read_count_calls_disk_and_pages_waited_for(proc: Path) -> None:
    (proc / "4711" / "io").write_bytes(b"rchar: 1000\nwchar: 7\nsyscr: 1\nread_bytes: 200\nwrite_bytes: 9\n")
    assert linux.bytes_read(4711) == 1000 + 200 + 21 * os.sysconf("SC_PAGE_SIZE")
    assert linux.bytes_read(99) == 0


def test_a_load_by_mapped_files_moves(tmp_path: Path) -> None:
    """The pulse of a process that only touches a mapped file that is not in memory."""
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.write(os.urandom(4 * 2**20))
        os.fsync(file.fileno())
    code = (
        "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY);"
        "os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); m = mmap.mmap(fd, 0, prot=mmap.PROT_READ);"
        "print('on', flush=True); input(); s = sum(m[i] for i in range(0, len(m), 4096));"
        "print('done', flush=True); input()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"on\n"
        before = take_pulse(reader.pid, 0)
        assert reader.stdin is not None
        reader.stdin.write(b"\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == b"done\n"
        after = take_pulse(reader.pid, 0)
    finally:
        reader.kill()
        reader.communicate()
    if psutil.disk_partitions(all=True) and _on_memory_only(tmp_path):
        pytest.skip("this folder is in memory, so nothing is read from a disk")
    assert after.bytes_read - before.bytes_read >= 2 * 2**20


def _on_memory_only(folder: Path) -> bool:
    mounts = [one for one in psutil.disk_partitions(all=True) if str(folder).startswith(one.mountpoint)]
    mount = max(mounts, key=lambda one: len(one.mountpoint), default=None)  # none is listed in a chroot
    return mount is not None and mount.fstype in ("tmpfs", "ramfs")


@pytest.mark.parametrize(
    ("files", "place", "kills"),
    [
        ({"a/memory.events.local": "oom 3\noom_kill 2\n", "a/memory.events": "oom_kill 9\n"}, "0::/a", 2),
        ({"a/b/memory.events": "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n"}, "0::/a/b", 1),
        ({"memory/d/memory.oom_control": "under_oom 0\noom_kill 4\n"}, "9:cpu:/x\n7:memory:/d", 4),
        ({"memory/memory.oom_control": "under_oom 0\noom_kill 5\n"}, "7:memory:/docker/0f", 5),
        ({}, "0::/", 0),
    ],
)  # fmt: skip
def test_kills_for_memory_are_those_of_our_own_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Any, place: str, kills: int
) -> None:
    monkeypatch.setattr(linux, "PROC", tmp_path / "proc")
    monkeypatch.setattr(linux, "CGROUPS", tmp_path / "cgroup")
    for name, text in {
        "proc/self/cgroup": place + "\n",
        **{f"cgroup/{n}": t for n, t in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert linux.memory_kills() == kills


# As the kernel's log has it, for its own limit and for one of a control group.
LOG = (
    "6,1290,100000000,-;Tasks state (memory values in pages):\n"
    "6,1292,100000100,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task=python3,pid=4711,uid=0\n"
    "3,1293,100000200,-;Memory cgroup out of memory: Killed process 4711 (python3) total-vm:9096kB\n"
    "3,1294,200000000,-;Out of memory: Killed process 812 (chrome) total-vm:33kB, anon-rss:1kB, UID:1000\n"
)  # fmt: skip


def test_only_the_one_that_the_kernel_names_was_killed_for_memory() -> None:
    assert linux.names_victim(LOG, 4711, now=110)
    assert linux.names_victim(LOG, 812, now=210)
    assert not linux.names_victim(LOG, 471, now=110)
    assert not linux.names_victim(LOG, 4711, now=9999), "another process had that number long ago"


def test_a_kill_by_hand_is_none_for_memory_although_another_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(linux, "KERNEL_LOG", str(tmp_path / "kmsg"))
    os.mkfifo(linux.KERNEL_LOG)
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to(linux.FIRST_PID_NAMESPACE)
    monkeypatch.setattr(linux, "PROC", tmp_path)
    monkeypatch.setattr(linux, "memory_kills", lambda: 9)
    with open(linux.KERNEL_LOG, "rb+", buffering=0) as log:
        log.write(LOG.encode())
        assert not linux.was_killed_for_memory(1234, kills_before=8)


def test_without_the_kernels_log_our_control_group_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(linux, "PROC", tmp_path)
    monkeypatch.setattr(linux, "memory_kills", lambda: 9)
    assert linux.was_killed_for_memory(1234, kills_before=8)
    assert not linux.was_killed_for_memory(1234, kills_before=9)


# both


@pytest.mark.parametrize("system", [linux, macos])
def test_a_child_is_reaped_once_it_has_ended_and_its_group_ends_with_it(system: Any) -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    )
    assert child.stdout is not None
    left = psutil.Process(int(child.stdout.readline()))
    assert system.reap(child.pid) is None
    assert child.stdin is not None
    child.stdin.close()
    child.stdout.close()
    deadline = time.monotonic() + 20
    while (found := system.reap(child.pid)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found is not None
    status, usage = found
    assert os.waitstatus_to_exitcode(status) in (0, 1)
    assert usage.ru_maxrss > 0
    child.returncode = 0
    assert psutil.wait_procs([left], timeout=20)[1] == []


@pytest.mark.parametrize("system", [linux, macos])
def test_a_child_whose_state_no_tool_tells_is_not_taken_for_dead(
    system: Any, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **b: pytest.fail("a child process was asked"))
    assert all(system.reap(sleeper.pid) is None for _ in range(100))
    os.kill(sleeper.pid, 0)


def test_a_keeper_keeps_its_engine_the_way_of_macos_without_any_child_process(tmp_path: Path) -> None:
    """Run with macOS's module, but for what only its kernel can answer."""
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import keeper_main; keeper_main.find_packages()\n"
        "import subprocess; subprocess.Popen = None\n"
        "from greenroom.runner.systems import linux, macos\n"
        "macos.start_time, macos.boot_id, macos.resident = linux.start_time, linux.boot_id, linux.resident\n"
        "from greenroom.runner.engines import keeper; keeper.here = macos; sys.exit(keeper.main())"
    )
    ours, theirs = socket.socketpair()
    engines = Path(keeper.__file__).parent
    kept = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, str(engines)],
        stdin=theirs.fileno(),
        start_new_session=True,
    )
    theirs.close()
    start = {
        "op": "start",
        "engine_id": "e",
        "folder": str(tmp_path),
        "argv": ["sleep", "60"],
        "env": {"PATH": os.environ["PATH"]},
        "keeper_socket": str(tmp_path / "k"),
        "engine_socket": "e",
        "grace": 30,
    }
    stream = ours.makefile("rwb", buffering=0)
    stream.write(json.dumps(start).encode() + b"\n")
    engine = psutil.Process(json.loads(stream.readline())["pid"])
    before = sum(psutil.Process(kept.pid).cpu_times()[:2])
    stream.write(b'{"op":"hold","grace":30}\n')
    assert json.loads(stream.readline())["event"] == "state"
    assert sum(psutil.Process(kept.pid).cpu_times()[:2]) - before < 0.5
    engine.kill()
    end = json.loads(stream.readline())
    assert (end["event"], end["signal"], end["out_of_memory"]) == ("exited", "SIGKILL", False)
    assert kept.wait(20) == 0
    stream.close()
    ours.close()


def test_a_full_backlog_is_no_death_on_either_system() -> None:
    full, refused = BlockingIOError(errno.EAGAIN, "later"), ConnectionRefusedError(errno.ECONNREFUSED, "no")
    assert linux.may_be_crowded(full)
    assert not linux.may_be_crowded(refused)
    assert macos.may_be_crowded(full)
    assert macos.may_be_crowded(refused)


@pytest.mark.parametrize("system", [linux, macos])
def test_a_port_is_bound_alone_and_soon_after_the_last_one_closed(system: Any) -> None:
    first, caller, second, third = (socket.socket() for _ in range(4))
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    first.bind(("127.0.0.1", 0))
    first.listen()
    address = first.getsockname()
    with pytest.raises(OSError, match="in use"):
        system.bind_alone(second, address)
    caller.connect(address)
    served, _ = first.accept()
    served.close()  # who closes first leaves the port waiting
    first.close()
    caller.close()
    system.bind_alone(third, address)
    for one in (second, third):
        one.close()


@pytest.mark.parametrize("system", [linux, macos])
def test_a_tree_is_handed_to_the_disk_with_links_left_alone(system: Any, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"x")
    (tmp_path / "a/dangling").symlink_to("nowhere")
    system.sync_tree(tmp_path)


def test_forcing_to_the_disk_empties_the_drives_cache_where_the_system_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS's fsync leaves bytes in the drive; some of its file systems know nothing else."""
    calls: list[Any] = []

    def full(descriptor: int, command: int) -> None:
        calls.append(command)
        if len(calls) > 1:
            raise OSError((len(calls) == 2 and errno.ENOTSUP) or errno.EIO, "no")

    monkeypatch.setattr(disk, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=full))
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    disk.force(3)
    assert calls == [51]
    disk.force(3)
    assert calls == [51, 51, "fsync"]
    with pytest.raises(OSError, match="no"):
        disk.force(3)


# macOS, by bytes


def kinfo(pid: int, *, state: int = 3, seconds: int = 1764446400, micro: int = 250000) -> bytes:
    """A `struct kinfo_proc`: start, state and pid are where `struct extern_proc` has them."""
    told = bytearray(648)
    struct.pack_into("=qi", told, 0, seconds, micro)
    told[36] = state
    struct.pack_into("=i", told, 40, pid)
    return bytes(told)


def test_macos_tells_start_times_to_the_microsecond_and_zombies_apart() -> None:
    assert macos.start_of(kinfo(4242), 4242) == 1764446400.25
    assert macos.start_of(kinfo(4242, state=5), 4242) == 0.0
    assert macos.start_of(b"", 4242) == 0.0


def test_macos_tells_stopped_traced_and_busy_processes_apart() -> None:
    stopped = bytearray(kinfo(7, state=4))
    assert (macos.state_of(bytes(stopped)), macos.flags_of(bytes(stopped))) == (4, 0)
    struct.pack_into("=i", stopped, 32, 0x4804)
    assert macos.flags_of(bytes(stopped)) & 0x800
    assert (macos.state_of(b""), macos.flags_of(b"")) == (0, 0)
    task = bytearray(96)
    struct.pack_into("=3i", task, 84, 12, 2, 31)  # threads, running, priority
    assert macos.running_of(bytes(task)) == 2


def test_a_struct_that_is_not_known_is_no_sign_of_death() -> None:
    with pytest.raises(OSError, match="unknown way"):
        macos.start_of(kinfo(1), 4242)
    with pytest.raises(OSError, match="unknown way"):
        macos.start_of(b"\0" * 20, 4242)


def test_macos_counts_what_is_read_from_disks_and_the_footprint() -> None:
    numbers = [0] * 18
    numbers[4], numbers[7], numbers[16] = 3, 900, 5000
    usage = struct.pack("=16s18Q", b"u" * 16, *numbers)
    assert len(usage) == 160, "sizeof(struct rusage_info_v2)"
    assert macos.read_of(usage, 16384) == 5000 + 3 * 16384
    assert macos.footprint_of(usage) == 900


def test_on_macos_cached_files_are_available() -> None:
    """A `struct vm_statistics64` of a Mac with 16 GiB and pages of 16 KiB: 8 GiB of cached files."""
    page, gib = 16384, 2**30 // 16384
    told = struct.pack(
        "=4I9Q2I4Q4IQ",
        *(gib // 4, 3 * gib, 4 * gib, 2 * gib),  # free, active, inactive, wired
        *(0,) * 9,
        *(gib, 0),  # purgeable, speculative
        *(0,) * 4,
        *(gib, 0, 8 * gib, 5 * gib),  # compressor, throttled, external (files), internal (programs)
        0,
    )
    assert len(told) == 152, "sizeof(struct vm_statistics64)"
    assert macos.available_of(told, page, 16 * 2**30) == 9 * 2**30


def test_numbers_of_the_kernel_have_four_bytes_or_eight() -> None:
    assert macos.number_of(struct.pack("=i", 21845)) == 21845
    assert macos.number_of(struct.pack("=q", 2**33)) == 2**33
    assert macos.number_of(b"") == 0


def test_the_module_of_this_system_is_chosen() -> None:
    assert here is (macos if sys.platform == "darwin" else linux)
    assert here.boot_id() == here.boot_id() != ""
    assert here.start_time(os.getpid()) == here.start_time(os.getpid()) > 0
    assert here.resident(os.getpid()) > 2**20
    assert here.bytes_read(os.getpid()) > 0


def test_memory_that_linux_cannot_drop_is_anonymous_or_swapped_out() -> None:
    status = (
        b"Name:\tpython\nVmRSS:\t  900000 kB\nRssAnon:\t  100 kB\nRssFile:\t  899000 kB\nRssShmem:\t 900 kB\n"
        b"VmSwap:\t  28 kB\n"
    )
    assert linux.own_of(status) == 128 * 1024
    assert linux.own_of(b"Name:\tzombie\nState:\tZ (zombie)\n") == 0
    assert macos.own_memory(1) is None, "its figure for a process includes files that Metal has wired"


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not tell")
@pytest.mark.parametrize("asks_kernel", [True, False])
@pytest.mark.parametrize(
    ("listens", "address"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::ffff:127.0.0.1", "127.0.0.1")]
)
def test_the_user_of_a_connection_is_known_while_its_program_has_it_open(
    listens: str, address: str, asks_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not asks_kernel:
        # As in a sandbox: there is no such family.
        monkeypatch.setattr(socket, "AF_NETLINK", 255)
    with socket.socket(socket.AF_INET6 if ":" in listens else socket.AF_INET) as server:
        if ":" in listens:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((listens, 0))
        server.listen()
        client = socket.create_connection(server.getsockname()[:2])
        accepted, _ = server.accept()
        with accepted:
            own, other = ((address, one.getsockname()[1]) for one in (client, server))
            assert here.socket_user(own, other) == os.getuid()
            assert here.socket_user(other, own) == os.getuid(), "the other end is ours, too"
            client.shutdown(socket.SHUT_WR)
            assert here.socket_user(own, other) == os.getuid(), "it still waits for an answer"
            client.close()
            assert here.socket_user(own, other) == -1, "without a program, the system says root"
        assert here.socket_user(("127.0.0.1", 1), ("127.0.0.1", 1)) == -1
