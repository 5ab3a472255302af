"""Memory that processes hold on devices with one of the kernel's own drivers."""

from __future__ import annotations

from pathlib import Path

from greenroom.runner.devices.drm import held_by

AMDGPU = """\
pos:\t0
flags:\t02100002
drm-driver:\tamdgpu
drm-client-id:\t42
drm-pdev:\t0000:03:00.0
drm-memory-vram:\t2048 KiB
drm-memory-gtt:\t512 KiB
drm-resident-vram:\t3072 KiB
"""
XE = "drm-driver:\txe\ndrm-client-id:\t5\ndrm-pdev:\t0000:08:00.0\ndrm-resident-vram0:\t7 MiB\n"


def files(proc: Path, pid: int, *texts: str) -> None:
    folder = proc / str(pid) / "fdinfo"
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / str(number)).write_text(text)


def test_a_client_counts_once_whichever_of_its_files_says_so(tmp_path: Path) -> None:
    files(tmp_path, 7, AMDGPU, AMDGPU, "pos:\t0\n")
    assert held_by([7], tmp_path) == {"0000:03:00.0": 3 * 2**20}


def test_processes_and_devices_are_counted_each(tmp_path: Path) -> None:
    files(tmp_path, 7, AMDGPU, XE)
    files(tmp_path, 8, AMDGPU.replace("\t42\n", "\t43\n"))
    assert held_by([7, 8, 9], tmp_path) == {"0000:03:00.0": 6 * 2**20, "0000:08:00.0": 7 * 2**20}
