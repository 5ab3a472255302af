"""Whether an NVIDIA graphics processor can be used, without loading NVIDIA's libraries.

The driver lists its processors below `/proc/driver/nvidia/gpus`. A container sees its host's `/proc` even
without access to the host's devices, so `/dev/nvidiactl` must exist too. Without that folder (as in WSL 2)
`nvidia-smi -L` is used, which prints a line `GPU 0: …` for each.
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
"""An idle driver is loaded first, which may take seconds."""


def answers(
    env: Mapping[str, str] | None = None, *, proc: Path = Path("/proc"), dev: Path = Path("/dev")
) -> bool:
    """Whether CUDA programs would find a processor.

    Users set `CUDA_VISIBLE_DEVICES` to nothing or to -1 to hide all. `proc` and `dev` are for tests.
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
