"""What became of conversations, summed up for the journal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import asdict, replace

from greenroom.actors.conversation_log import (
    ConversationsDropped,
    ConversationsFailed,
    ConversationsRestored,
    ConversationsSaved,
)

EVERY = 60.0
"""Seconds between two sums of the same."""

Sum = ConversationsSaved | ConversationsRestored | ConversationsDropped | ConversationsFailed
_SUMMED = frozenset({"count", "tokens", "bytes", "seconds"})


class RestoredTotals(NamedTuple):
    """What engines have been given back."""

    times: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """That reading the tokens would have taken."""

    def plus(self, tokens: int, seconds: float) -> RestoredTotals:
        return RestoredTotals(self.times + 1, self.tokens + tokens, self.seconds + seconds)


class ConversationSums:
    """Thread-safe. Nothing is sent before `send` is set."""

    def __init__(self) -> None:
        self.send: Callable[[Sum], None] = lambda _: None
        self.is_waiting = False
        """There is something to send."""
        self._lock = threading.Lock()
        self._sums: dict[Sum, Sum] = {}
        """By what they have in common: the same without its numbers."""
        self._sent = -EVERY

    def add(self, new: Sum) -> None:
        """Count what became of one conversation."""
        numbers = {name: value for name, value in asdict(new).items() if name in _SUMMED}
        key = replace(new, **dict.fromkeys(numbers, 0))
        with self._lock:
            if (old := self._sums.get(key)) is not None:
                new = replace(new, **{name: value + getattr(old, name) for name, value in numbers.items()})
            self._sums[key] = new
            self.is_waiting = True

    def flush(self, now: float) -> None:
        """Send what there is, unless that was done within the last minute."""
        if now - self._sent >= EVERY:
            self._sent = now
            self.flush_all()

    def flush_all(self, engine: str = "") -> None:
        """Send what there is; with an engine, only what was saved of its conversations."""
        with self._lock:
            due = {
                key: one
                for key, one in self._sums.items()
                if not engine or (isinstance(one, ConversationsSaved) and one.engine == engine)
            }
            self._sums = {key: one for key, one in self._sums.items() if key not in due}
            self.is_waiting = bool(self._sums)
        for one in due.values():
            self.send(one)
