"""The program that asks NVML, with a library that answers as NVIDIA's does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from greenroom.actors.graphics import Graphics
from greenroom.runner.devices.children import Children
from greenroom.runner.devices.found import Look
from greenroom.runner.devices.host_view import HostView
from greenroom.runner.devices.inventory import look

SOURCE = Path(__file__).parent / "programs" / "fake_nvml.c"
COMPILER = shutil.which("cc") or ""
GIB = 2**30
pytestmark = pytest.mark.skipif(
    not COMPILER or not sys.platform.startswith("linux"),
    reason="there is no C compiler: apt-get install gcc libc6-dev",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    argv = [COMPILER, "-shared", "-fPIC", "-o", str(built), str(SOURCE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return built


def seen(library: Path, monkeypatch: pytest.MonkeyPatch, **env: str) -> Look:
    """A machine that has nothing but this library."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (library.parent / "dev").mkdir(exist_ok=True)
    (library.parent / "dev/nvidiactl").touch()
    # The loader knows no root: the library is found by its place on the real machine.
    root = library.parent
    target = root / str(root).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(target):
        target.symlink_to(root)
    view = HostView(root=root, env={"PATH": "/nowhere", "LD_LIBRARY_PATH": str(root)}, run=Children().run)
    return look(view)


def graphics(library: Path, monkeypatch: pytest.MonkeyPatch, **env: str) -> Graphics:
    return seen(library, monkeypatch, **env).graphics


def test_a_card_is_read_with_everything_that_nvml_says(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = seen(library, monkeypatch).found
    device = one.device
    assert (device.id, device.name) == ("GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "NVIDIA H100 NVL")
    assert (device.total, device.free) == (100 * GIB, 60 * GIB)
    assert (device.driver, device.runtime("cuda"), device.target) == ("580.65.06", "13.0", "9.0")
    assert device.bus == "0001:c1:00.0"
    assert device.problem is None
    assert one.users == {4711: 7 * GIB, 815: 2**20}
    assert one.indexes == {"cuda": "0"}


def test_what_a_library_prints_does_not_come_between(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(graphics(library, monkeypatch, FAKE_NVML="noise").usable) == 1


def test_a_process_without_a_number_makes_all_unknown(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = seen(library, monkeypatch, FAKE_NVML_MUTE="1").found
    assert one.users is None


def test_the_instances_of_a_divided_card_are_devices(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = seen(library, monkeypatch, FAKE_NVML="mig").found
    assert (one.device.id, one.indexes) == ("MIG-1", {"cuda": "MIG-1"})


@pytest.mark.parametrize(("how", "code"), [("mismatch", "driver_mismatch"), ("crash", "driver_crashes")])
def test_a_library_that_refuses_or_crashes_is_a_problem(
    library: Path, monkeypatch: pytest.MonkeyPatch, how: str, code: str
) -> None:
    found = graphics(library, monkeypatch, FAKE_NVML=how)
    assert [one.code for one in found.problems] == [code]
