"""The room on a disk, and what is dropped to make more of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

RESERVE = 64 * 2**20
"""Bytes of the disk left free for the journal, logs and other programs."""
MakeRoom = Callable[[int, Path], int]
"""Drops what can be spared, so many bytes on the disk of a folder; returns the bytes."""


def spare_nothing(wanted: int, where: Path) -> int:  # noqa: ARG001 - a `MakeRoom`
    return 0


class DiskRoom:
    """The disk of one folder, which need not exist yet."""

    def __init__(self, folder: Path, make_room: MakeRoom = spare_nothing) -> None:
        self._folder = folder
        self._make_room = make_room

    @property
    def folder(self) -> Path:
        """The nearest one that exists."""
        return existing(self._folder)

    def free(self, wanted: int = 0) -> int:
        """Bytes that can be written. If they are fewer than wanted, what can be spared is dropped first.

        Raises:
            OSError: The disk cannot be asked.
        """
        there = shutil.disk_usage(self.folder).free
        if there < wanted and self._make_room(wanted - there, self.folder):
            there = shutil.disk_usage(self.folder).free
        return there


def existing(place: Path) -> Path:
    """The nearest existing folder above a path."""
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return place
