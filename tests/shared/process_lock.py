"""One test process at a time: what several make for all of them is made once."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def process_lock(folder: Path, name: str) -> Iterator[None]:
    """Keep every other test process out of what `name` stands for in this folder; death ends it, too."""
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
