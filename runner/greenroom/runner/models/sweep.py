"""Sweeps the store: old partial downloads, and blobs that belong to no model."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Container
from contextlib import suppress
from pathlib import Path

from greenroom.actors.journal.fsync import TEMPORARY
from greenroom.runner.models.files import children, size_of, unlink, walk


def sweep_abandoned(root: Path, incoming: Path, arrivals: Container[Path]) -> int:
    """Remove what a crash has left: arrivals but these, and files half written; returns the bytes freed."""
    freed = 0
    for folder in children(incoming):
        if folder not in arrivals:
            freed += size_of(walk(folder), set())
            shutil.rmtree(folder, ignore_errors=True)
    return freed + sum(unlink(path) for path in children(root) if path.name.startswith(TEMPORARY))


def sweep_partial(folder: Path, before: float, busy: Container[str] = ()) -> int:
    """Remove partial downloads last written before a wall time; returns the bytes freed.

    Running downloads are kept: they are locked, or named (in hex) in `busy`.
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


class UnreferencedBlobs:
    """The blobs in a folder that no model has, and since when.

    For each, an empty file records since when it has been seen without a model, so that one wrong look at the
    models removes nothing.
    """

    def __init__(self, marks: Path, blobs: Path) -> None:
        self._marks = marks
        self._blobs = blobs

    def sweep(self, named: Collection[Path], now: float, before: float) -> int:
        """Remove the blobs without a model since `before`; returns the bytes freed.

        Raises:
            OSError: One cannot be removed.
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
            # A clock that was ahead must not keep it forever.
            return min(mark.stat().st_mtime, now)
        self._marks.mkdir(exist_ok=True)
        mark.touch()
        os.utime(mark, (now, now))
        return now
