"""Checks that the file of a saved conversation is what was saved, before an engine reads it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from greenroom.runner.conversations import files
from greenroom.runner.conversations.entry import SavedConversation

_CHECKED_FOR = 60.0
"""Seconds for which a file that has been checked, and has the same inode and times, is not read again."""


class FileChecks:
    """Thread-safe; one file is read at a time."""

    def __init__(self) -> None:
        self._reading = threading.Lock()
        self._checked: dict[str, tuple[files.Identity, float]] = {}
        """Entry → its file when that was found intact, and when."""

    def is_intact(self, entry: SavedConversation, path: Path) -> bool:
        """Whether this name of an entry's file has what was saved. Raises OSError."""
        with self._reading:
            found, now = files.identity(path), time.monotonic()
            self._checked = {one: seen for one, seen in self._checked.items() if now - seen[1] < _CHECKED_FOR}
            if entry.id in self._checked and self._checked[entry.id][0] == found:
                return True
            if files.checksum(path) != (entry.size, entry.checksum):
                return False
            self._checked[entry.id] = found, time.monotonic()
            return True
