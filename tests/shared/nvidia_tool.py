"""An `nvidia-smi` in a folder, for devices that the tests make up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "programs" / "fake_nvidia_smi.py"


def put_tool(folder: Path) -> None:
    """Have the program there. It tells of what `have` has written."""
    tool = folder / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {PROGRAM} "$@"\n')
    tool.chmod(0o755)


def have(folder: Path, sizes: tuple[int, ...], others: tuple[int, ...] = ()) -> None:
    """Devices of so many MiB, of which other programs use so many."""
    used = (*others, *(0 for _ in sizes))
    devices = [
        {"index": n, "uuid": f"GPU-{n}", "name": f"NVIDIA Test {n}", "total": size, "others": used[n]}
        for n, size in enumerate(sizes)
    ]
    fresh = folder / "devices.new"
    fresh.write_text(json.dumps(devices))
    fresh.rename(folder / "devices.json")
