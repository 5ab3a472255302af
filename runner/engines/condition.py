"""In which condition an engine's processes are: at work, stopped, in a debugger's hands.

Asked for only of engines under suspicion, so it may cost some milliseconds. What cannot be read is taken for
the answer that ends no engine.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Collection
from pathlib import Path

from greenroom.runner.engines.keeper import SYSTEM

PROC = Path("/proc")
_TOOL_SECONDS = 5.0
_WANTS_TO_WORK = frozenset({b"R", b"D"})
"""Runs or waits for a processor; waits for a disk that somebody must answer."""
_STOPPED = frozenset({b"T"})


def traced(pids: Collection[int]) -> bool:
    """True when a debugger holds any of them: then it is left alone, however still it is."""
    if SYSTEM != "linux":
        return any("X" in state for state in _states_by_ps(pids))
    for pid in pids:
        with contextlib.suppress(OSError), (PROC / str(pid) / "status").open("rb") as file:
            for line in file:
                if line.startswith(b"TracerPid:") and line.split()[1] != b"0":
                    return True
    return False


def stopped(pids: Collection[int]) -> bool:
    """True when a signal has stopped any of them, as SIGSTOP does."""
    if SYSTEM != "linux":
        return any(state.startswith("T") for state in _states_by_ps(pids))
    return any(_state(PROC / str(pid) / "stat") in _STOPPED for pid in pids)


def wants_to_work(pids: Collection[int]) -> bool:
    """True when a thread of any of them would compute if the machine let it, or waits for a disk."""
    if SYSTEM != "linux":
        return any(state[:1] in ("R", "U") for state in _states_by_ps(pids))
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in (PROC / str(pid) / "task").iterdir():
                if _state(task / "stat") in _WANTS_TO_WORK:
                    return True
    return False


def _state(path: Path) -> bytes:
    try:
        fields = path.read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return b""
    return fields[0] if fields else b""


def _states_by_ps(pids: Collection[int]) -> list[str]:
    if not pids:
        return []
    try:
        done = subprocess.run(
            ["/bin/ps", "-o", "stat=", "-p", ",".join(str(pid) for pid in pids)],
            capture_output=True,
            timeout=_TOOL_SECONDS,
            check=False,
            env={"LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.decode("ascii", "replace").split()
