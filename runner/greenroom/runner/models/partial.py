"""Downloads that broke off and wait for another attempt."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Container
from contextlib import suppress
from pathlib import Path


def sweep_partial(folder: Path, before: float, busy: Container[str] = ()) -> int:
    """Remove what was last written to before a wall time; returns the bytes freed.

    What a download writes to at this moment stays: it is locked, or named (in hex) in `busy`.
    """
    freed = 0
    with suppress(FileNotFoundError):
        for path in list(folder.iterdir()):
            if path.name == "wheels" and path.is_dir():
                freed += sweep_partial(path, before, busy)
            elif path.name.partition(".")[0] not in busy:
                with suppress(FileNotFoundError):
                    freed += _remove(path, before)
    return freed


def _remove(path: Path, before: float) -> int:
    if path.stat().st_mtime >= before:
        return 0
    if path.is_dir():
        size = sum(file.stat().st_size for file in path.iterdir())
        shutil.rmtree(path, ignore_errors=True)
        return size
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0
        size = path.stat().st_size
        path.unlink()
        return size
