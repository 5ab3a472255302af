"""How often an actor may be rebuilt, and what is stored of commands that fail every time."""

from __future__ import annotations

import traceback
from collections import deque

import msgspec
from greenroom.actors.kernel.core import Command, Event

REBUILDS = 5
"""Rebuilds of one actor allowed within the window; then something is wrong that a rebuild does not cure."""
REBUILD_WINDOW = 30.0
"""Seconds."""


class CommandParked(Event, frozen=True, kw_only=True):
    """A command failed twice, the second time in a freshly rebuilt actor; it was put aside.

    The same failure again is stored at its 10th, 100th, … time only: whoever repeats a request that
    fails must not grow the journal.
    """

    TAG = "command_parked"
    actor: str
    command: str
    fields: str
    """The command as JSON, for whoever looks into it."""
    traceback: str
    count: int = 1
    """How often this has happened since the system started."""


class Intensity:
    """Counts rebuilds over a sliding window."""

    def __init__(self, limit: int = REBUILDS, window: float = REBUILD_WINDOW) -> None:
        self.limit = limit
        self.window = window
        self._at: deque[float] = deque()

    def allows(self, now: float) -> bool:
        """Count one more, unless there were too many; `now` is monotonic."""
        while self._at and self._at[0] <= now - self.window:
            self._at.popleft()
        if len(self._at) >= self.limit:
            return False
        self._at.append(now)
        return True


class Complaints:
    """Counts failures that look the same, and says which of them are worth storing."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], int] = {}

    def count(self, actor: str, command: Command, error: BaseException) -> tuple[int, bool]:
        """How often this failure has happened now, and whether to store it."""
        place = traceback.extract_tb(error.__traceback__)[-1:]
        where = f"{place[0].filename}:{place[0].lineno}" if place else ""
        key = (actor, type(command).__name__, type(error).__name__, where)
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return count, count == 10 ** (len(str(count)) - 1)


def in_one_line(error: BaseException) -> str:
    """The error's type and message; unlike `str`, this never raises."""
    return traceback.format_exception_only(error)[-1].strip()


def as_text(command: Command) -> str:
    """The command as JSON where it can be, else as Python shows it; for people."""
    try:
        return msgspec.json.encode(command, enc_hook=repr).decode()
    except Exception:  # noqa: BLE001 - a command nobody can encode may be why it failed
        return object.__repr__(command)


def without_secrets(command: Command, text: str) -> str:
    """The text with every secret of this command taken out."""
    for name in type(command).SECRETS:
        secret = str(getattr(command, name))
        if secret:
            text = text.replace(secret, "***")
    return text
