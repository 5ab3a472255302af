"""What is taken for the memory there is: the machine's, or the smallest limit of the groups we are in."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from greenroom.runner.config import Settings
from greenroom.runner.devices.apple import metal_limit
from greenroom.runner.devices.watch import DeviceWatch
from greenroom.runner.memory import EngineMemory, MachineMemory, MemoryReader

MIB = 2**20
MACHINE = 16 * 1024 * MIB
MachineWith = Callable[..., MemoryReader]

V2_MOUNT = "31 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"


@pytest.fixture
def machine_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MachineWith:
    """A reader in a tree of files: `machine_with(cgroup="0::/a", mounts=V2_MOUNT, files={…})`."""
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(total=MACHINE, available=12 * 1024 * MIB)
    )

    def make(cgroup: str, mounts: str, files: dict[str, object]) -> MemoryReader:
        for name, content in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, **files}.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{content}\n")
        return MemoryReader(tmp_path)

    return make


def test_a_limit_of_version_2_counts_with_what_the_page_cache_can_give_back(
    machine_with: MachineWith, tmp_path: Path
) -> None:
    group = "sys/fs/cgroup/app.slice/greenroom.service"
    memory = machine_with(
        "0::/app.slice/greenroom.service",
        V2_MOUNT,
        {
            f"{group}/memory.max": 512 * MIB,
            f"{group}/memory.current": 300 * MIB,
            f"{group}/memory.stat": f"anon {180 * MIB}\ninactive_file {70 * MIB}\nactive_file {30 * MIB}",
            "sys/fs/cgroup/app.slice/memory.max": "max",
        },
    ).now()
    assert memory.total == 512 * MIB
    assert memory.available == (512 - 300 + 100) * MIB
    assert memory.limited_by == str(tmp_path / group)


def test_a_limit_of_version_1_counts_and_one_of_2_to_the_63_is_none(machine_with: MachineWith) -> None:
    group = "sys/fs/cgroup/memory/docker/abc"
    memory = machine_with(
        "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/",
        V1_MOUNT,
        {
            f"{group}/memory.limit_in_bytes": 1024 * MIB,
            f"{group}/memory.usage_in_bytes": 600 * MIB,
            f"{group}/memory.stat": f"inactive_file 1\ntotal_inactive_file {50 * MIB}\ntotal_active_file 0",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
        },
    ).now()
    assert (memory.total, memory.available) == (1024 * MIB, (1024 - 600 + 50) * MIB)


def test_in_nested_groups_the_smallest_limit_and_the_fullest_group_count(machine_with: MachineWith) -> None:
    memory = machine_with(
        "0::/outer/inner",
        V2_MOUNT,
        {
            "sys/fs/cgroup/outer/inner/memory.max": 4096 * MIB,
            "sys/fs/cgroup/outer/inner/memory.current": 100 * MIB,
            "sys/fs/cgroup/outer/memory.max": 6144 * MIB,
            "sys/fs/cgroup/outer/memory.current": 6000 * MIB,
        },
    ).now()
    assert (memory.total, memory.available) == (4096 * MIB, 144 * MIB)


def test_the_limit_from_which_the_kernel_slows_programs_down_counts_too(machine_with: MachineWith) -> None:
    files = {"sys/fs/cgroup/memory.max": 4096 * MIB, "sys/fs/cgroup/memory.high": 3072 * MIB}
    assert machine_with("0::/", V2_MOUNT, files).now().total == 3072 * MIB


@pytest.mark.parametrize(
    ("cgroup", "mounts"),
    [
        # The container sees its own group alone, under the path that it has outside.
        ("4:memory:/docker/abc", V1_MOUNT.replace("0:32 / ", "0:32 /docker/abc ")),
        # A namespace of control groups in which we have been moved outside of its root.
        ("4:memory:/../other", V1_MOUNT),
        # The mounted part is another one than ours.
        ("4:memory:/kubepods/pod1/abc", V1_MOUNT.replace("0:32 / ", "0:32 /docker/abc ")),
    ],
)
def test_what_is_mounted_in_a_container_is_taken_for_our_group(
    machine_with: MachineWith, cgroup: str, mounts: str
) -> None:
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": 256 * MIB}
    assert machine_with(cgroup, mounts, files).now().total == 256 * MIB


def test_a_limit_above_the_machines_memory_and_a_machine_without_groups_leave_what_is_measured(
    machine_with: MachineWith,
) -> None:
    expected = MachineMemory(MACHINE, 12 * 1024 * MIB)
    assert machine_with("0::/", V2_MOUNT, {"sys/fs/cgroup/memory.max": 2 * MACHINE}).now() == expected
    assert machine_with("", "", {"sys/fs/cgroup/memory.max": 2 * MACHINE}).now() == expected


def test_a_reading_that_fails_repeats_the_one_before(
    machine_with: MachineWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = machine_with("0::/", V2_MOUNT, {"sys/fs/cgroup/memory.max": 512 * MIB})
    before = reader.now()

    def fails() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(psutil, "virtual_memory", fails)
    assert reader.now() == before
    assert MemoryReader().now().total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_small_container_keeps_a_budget_and_a_headroom_that_is_set_is_kept(
    machine_with: MachineWith, tmp_path: Path
) -> None:
    reader = machine_with("0::/", V2_MOUNT, {"sys/fs/cgroup/memory.max": 512 * MIB})

    def budget(settings: Settings) -> int:
        return EngineMemory(settings, DeviceWatch(headroom=0), reader=reader).budget

    assert budget(Settings(home=tmp_path)) == 512 * MIB * 9 // 10 - 64 * MIB
    assert budget(Settings(home=tmp_path, headroom=400 * MIB)) == 512 * MIB * 9 // 10 - 400 * MIB


def test_metal_holds_less_than_the_memory_unless_its_limit_was_raised() -> None:
    assert metal_limit(24 * 2**30, 0) == 16 * 2**30
    assert metal_limit(64 * 2**30, 0) == 48 * 2**30
    assert metal_limit(64 * 2**30, 20_000) == 20_000 * MIB
    assert MachineMemory(24 * 2**30, 0, metal=16 * 2**30).budget(0) == 16 * 2**30


@contextlib.contextmanager
def real_group(limit: int) -> Iterator[Path]:
    """A control group of this machine with a limit; skips where we may not make one."""
    name = f"greenroom-test-{os.getpid()}"
    for top, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(top) / name
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / file).write_text(str(limit))
        except OSError:
            folder.rmdir()
            continue
        try:
            yield folder
        finally:
            folder.rmdir()
        return
    pytest.skip("needs a memory controller and the right to make groups")


@pytest.mark.skipif(sys.platform != "linux", reason="control groups (Linux)")
def test_a_process_in_a_real_group_sees_its_limit() -> None:
    program = (
        "import os, pathlib, sys\n"
        "pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "from greenroom.runner.memory import MemoryReader\n"
        "now = MemoryReader().now()\n"
        "print(now.total, now.available, now.limited_by)\n"
    )
    with real_group(700 * MIB) as folder:
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        total, available, limited_by = done.stdout.split()
    assert int(total) == 700 * MIB
    assert 500 * MIB < int(available) < 700 * MIB
    assert limited_by == str(folder)
