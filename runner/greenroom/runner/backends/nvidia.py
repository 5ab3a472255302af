"""Whether an NVIDIA graphics processor can be used on this machine, without loading anything of NVIDIA's.

The driver lists its processors below `/proc/driver/nvidia/gpus`. A container sees its host's `/proc` also
when it may not use the host's devices, so `/dev/nvidiactl` must be there as well. Where there is no such
folder (WSL 2 has none) `nvidia-smi -L` is asked; it prints a line `GPU 0: …` for each.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_WSL = "/usr/lib/wsl/lib"
_SECONDS = 10.0
"""A driver that nobody uses is loaded by the question, which may take seconds."""


def answers(
    env: Mapping[str, str] | None = None, *, proc: Path = Path("/proc"), dev: Path = Path("/dev")
) -> bool:
    """True when there is a processor that CUDA programs would be given.

    `CUDA_VISIBLE_DEVICES` set to nothing or to -1 is how users say that there shall be none. `proc` and `dev`
    are for tests.
    """
    env = os.environ if env is None else env
    if env.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    with contextlib.suppress(OSError):
        if any((proc / "driver/nvidia/gpus").iterdir()):
            return (dev / "nvidiactl").exists()
    program = shutil.which("nvidia-smi", path=os.pathsep.join((env.get("PATH", ""), _WSL)))
    return program is not None and _listed(program)


@cache
def _listed(program: str) -> bool:
    try:
        told = subprocess.run(
            [program, "-L"], capture_output=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return told.returncode == 0 and told.stdout.startswith(b"GPU ")
