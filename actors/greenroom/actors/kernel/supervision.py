"""How often an actor may be rebuilt, and what is stored of commands that fail every time."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from typing import Any

import msgspec

from greenroom.actors.kernel.core import Command, Event, Fault

REBUILDS = 5
"""Rebuilds of one actor allowed within the window; beyond it the next one waits."""
REBUILD_WINDOW = 30.0
"""Seconds."""


class CommandParked(Event, frozen=True, kw_only=True):
    """Something failed twice and was put aside: a command, an effect, or one item of what follows.

    The same failure again is stored at its 10th, 100th, … time only: a client that repeats a request
    that fails must not grow the journal.
    """

    TAG = "command_parked"
    PROBLEM = True
    actor: str
    command: str
    """Name of the command's type; of something else, what was being done, in words."""
    fields: str
    """The command as JSON; of something else, the id of what it was about."""
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
    """Counts failures that look the same, and says which of them are worth storing. Thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    def count(self, actor: str, fault: Fault) -> tuple[int, bool]:
        """How often this failure has happened now, and whether to store it."""
        key = (actor, fault.doing, fault.error.partition(":")[0], fault.place)
        with self._lock:
            count = self._counts[key] = self._counts.get(key, 0) + 1
        return count, count == 10 ** (len(str(count)) - 1)


class BackOff:
    """When to try again what has failed: after 0.1 s, then twice as long each time, at most a minute."""

    def __init__(self, first: float = 0.1, longest: float = 60.0) -> None:
        self.failures = 0
        """In a row."""
        self._first = first
        self._longest = longest
        self._until = 0.0

    def failed(self, now: float) -> None:
        self._until = now + min(self._longest, self._first * 2.0 ** min(self.failures, 32))
        self.failures += 1

    def succeeded(self) -> None:
        self.failures = 0
        self._until = 0.0

    def try_now(self) -> None:
        """Something has changed: it is worth a try before its time."""
        self._until = 0.0

    def waits_until(self, now: float) -> float | None:
        """The monotonic second before which it is not tried again; None when it may be."""
        return self._until if self.failures and now < self._until else None


def in_one_line(error: BaseException) -> str:
    """The error's type and message; unlike `str`, this never raises."""
    return traceback.format_exception_only(error)[-1].strip()


def as_text(command: Command[Any]) -> str:
    """The command as JSON where it can be, else as Python shows it; for people."""
    try:
        return msgspec.json.encode(command, enc_hook=repr).decode()
    except Exception:  # noqa: BLE001 - that it cannot be encoded may be why it failed
        return object.__repr__(command)


def without_secrets(command: Command[Any], text: str) -> str:
    """The text with every secret of this command taken out."""
    for name in type(command).SECRETS:
        secret = str(getattr(command, name))
        if secret:
            text = text.replace(secret, "***")
    return text
