"""Blobs that belong to no model (left by a crash, or by a lost index), removed after a while.

For each, an empty file records since when it has been seen without a model, so that one wrong look at the
models removes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from greenroom.runner.models.files import children, unlink


class Unnamed:
    """The blobs in a folder that no model has, and since when."""

    def __init__(self, marks: Path, blobs: Path) -> None:
        self._marks = marks
        self._blobs = blobs

    def sweep(self, named: Collection[Path], now: float, before: float) -> int:
        """Remove the blobs that have been nobody's since `before`; returns the bytes freed.

        Raises:
            OSError: the disk refused.
        """
        unnamed = {path.name: path for path in children(self._blobs) if path not in named}
        for mark in children(self._marks):
            if mark.name not in unnamed:
                mark.unlink(missing_ok=True)
        freed = 0
        for name, blob in unnamed.items():
            mark = self._marks / name
            if self._since(mark, now) <= before:
                freed += unlink(blob)
                mark.unlink(missing_ok=True)
        return freed

    def _since(self, mark: Path, now: float) -> float:
        with suppress(FileNotFoundError):
            # A clock that was ahead must not keep it for ever.
            return min(mark.stat().st_mtime, now)
        self._marks.mkdir(exist_ok=True)
        mark.touch()
        os.utime(mark, (now, now))
        return now
