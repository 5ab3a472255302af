from __future__ import annotations

import re
from typing import Any, cast

import pytest
from packaging.markers import default_environment
from packaging.tags import compatible_tags, cpython_tags, mac_platforms

from greenroom.runner.backends.base import Environment, Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.lock_file import LOCKS, Lock, LockedFile, LockedPackage, render, shipped

SHIPPED = sorted(LOCKS.glob("*.txt"))


def linux(machine: str) -> list[str]:
    return [f"manylinux_2_{minor}_{machine}" for minor in range(39, 4, -1)] + [f"manylinux2014_{machine}"]


MACHINES = {
    "linux-x86_64": (linux("x86_64"), {"sys_platform": "linux", "platform_machine": "x86_64"}),
    "linux-arm64": (linux("aarch64"), {"sys_platform": "linux", "platform_machine": "aarch64"}),
    "macos-arm64": (
        list(mac_platforms((15, 0), "arm64")),
        {"sys_platform": "darwin", "platform_machine": "arm64"},
    ),
}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_lock_names_no_index_and_every_file_has_a_hash_and_a_size(file: Any) -> None:
    text = file.read_text()
    assert "://" not in text
    assert "--index" not in text
    lock = Lock(text)
    assert lock.packages
    for package in lock.packages:
        assert package.files, package.name
        assert all(locked.size > 0 for locked in package.files), package.name
        assert len(package.files) == len(set(re.findall(r"[0-9a-f]{64}", render([package], [])))), (
            package.name
        )


@pytest.mark.parametrize("backend", ["llama.cpp", "mlx"])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_shipped_locks_have_a_wheel_for_every_supported_machine(
    backend: str, machine: Any, minor: int
) -> None:
    platforms, variables = MACHINES[machine]
    tags = [
        *cpython_tags((3, minor), platforms=platforms),
        *compatible_tags((3, minor), f"cp3{minor}", platforms),
    ]
    version = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.5", "extra": ""}
    lock = Lock((LOCKS / f"{backend}.txt").read_text())
    files = lock.files(tags, {**cast("dict[str, str]", default_environment()), **variables, **version})
    projects = [file.project for file in files]
    assert len(projects) == len(set(projects))
    assert ("mlx-metal" in projects) == (backend == "mlx" and machine == "macos-arm64")
    assert "colorama" not in projects


@pytest.mark.parametrize("machine", ["linux-x86_64", "linux-arm64"])
@pytest.mark.parametrize("minor", [11, 12, 13])
@pytest.mark.parametrize(
    ("name", "needed"), [("vllm", {"vllm", "torch"}), ("mlx-cuda", {"mlx-cuda-12", "mlx-lm"})]
)
def test_the_locks_for_cuda_have_a_wheel_for_every_linux(
    machine: str, minor: int, name: str, needed: set[str]
) -> None:
    platforms, variables = MACHINES[machine]
    tags = [
        *cpython_tags((3, minor), platforms=platforms),
        *compatible_tags((3, minor), f"cp3{minor}", platforms),
    ]
    version = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.5", "extra": ""}
    files = Lock((LOCKS / f"{name}.txt").read_text()).files(
        tags, {**cast("dict[str, str]", default_environment()), **variables, **version}
    )
    assert needed <= {file.project for file in files}


def test_the_lock_satisfies_what_the_declaration_asks_for() -> None:
    from packaging.requirements import Requirement

    sources = [
        source
        for backend in BACKENDS.values()
        for source in (backend.source, *(one.source for one in backend.variants))
        if isinstance(source, Environment) and (LOCKS / f"{source.lock}.txt").exists()
    ]
    assert {"llama.cpp", "mlx", "mlx-cuda", "vllm"} <= {one.lock for one in sources}
    for source in sources:
        lock = Lock((LOCKS / f"{source.lock}.txt").read_text())
        for text in source.requirements:
            wanted = Requirement(text)
            assert wanted.specifier.contains(lock.version_of(wanted.name)), text


def test_what_is_rendered_is_read_back() -> None:
    packages = [
        LockedPackage("a", "1.0", "", (LockedFile("a-1.0-py3-none-any.whl", "0" * 64, 7),)),
        LockedPackage(
            "b-c",
            "2!1.0+x",
            "sys_platform == 'linux' and python_full_version < '3.12'",
            (
                LockedFile("b_c-1-py3-none-any.whl", "1" * 64, 8),
                LockedFile("b_c-2-py3-none-any.whl", "2" * 64, 9),
            ),
        ),
    ]
    lock = Lock(render(packages, ["made by hand", ""]))
    assert list(lock.packages) == packages
    assert lock.digest == Lock(lock.text).digest


def test_the_best_wheel_is_chosen_not_the_first() -> None:
    names = [
        "a-1-py3-none-any.whl",
        "a-1-cp311-cp311-manylinux_2_17_x86_64.whl",
        "a-1-cp312-cp312-linux_x86_64.whl",
    ]
    files = tuple(LockedFile(name, str(n) * 64, 1) for n, name in enumerate(names))
    lock = Lock(render([LockedPackage("a", "1", "", files)], []))
    platforms = linux("x86_64")
    tags = [*cpython_tags((3, 11), platforms=platforms), *compatible_tags((3, 11), "cp311", platforms)]
    assert [file.name for file in lock.files(tags)] == [names[1]]


def test_a_package_without_a_wheel_for_here_says_so() -> None:
    package = LockedPackage("a", "1", "", (LockedFile("a-1-cp27-none-win32.whl", "0" * 64, 1),))
    with pytest.raises(JobFailed, match="a 1 has no wheel for this platform and Python") as caught:
        Lock(render([package], [])).files()
    assert caught.value.failure.code == "unsupported_platform"


def test_a_platform_without_a_lock_is_refused() -> None:
    source = Environment(distribution="nothing", lock="nothing", probe=(), requirements=())
    platform = Platform(system="linux", machine="riscv64", python=(3, 14))
    with pytest.raises(
        JobFailed, match=r"no tested set of packages of nothing for linux on riscv64 with Python 3\.14"
    ):
        shipped(source, platform)


def test_a_line_that_is_not_locked_is_refused() -> None:
    with pytest.raises(ValueError, match="not a locked requirement"):
        Lock("numpy>=2\n").packages  # noqa: B018
