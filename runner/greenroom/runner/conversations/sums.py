"""What became of conversations, summed up for the journal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, NamedTuple

from msgspec.structs import replace

from greenroom.actors.conversation_log import NoteConversations

EVERY = 60.0
"""Seconds between two sums of the same."""

What = Literal["saved", "restored", "dropped"]


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
        self.send: Callable[[NoteConversations], None] = lambda _: None
        self.is_waiting = False
        """There is something to send."""
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, ...], NoteConversations] = {}
        self._sent = -EVERY

    def add(
        self,
        what: What,
        model_id: str,
        backend: str,
        *,
        tokens: int,
        seconds: float,
        engine: str = "",
        size: int = 0,
        reason: str = "",
    ) -> None:
        """Count one conversation."""
        key = (what, model_id, backend, engine, reason)
        new = NoteConversations(
            what=what,
            model_id=model_id,
            backend=backend,
            engine=engine,
            count=1,
            tokens=tokens,
            bytes=size,
            seconds=seconds,
            reason=reason,
        )
        with self._lock:
            if (old := self._sums.get(key)) is not None:
                new = replace(
                    new,
                    count=old.count + 1,
                    tokens=old.tokens + tokens,
                    bytes=old.bytes + size,
                    seconds=old.seconds + seconds,
                )
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
                if not engine or (one.what, one.engine) == ("saved", engine)
            }
            self._sums = {key: one for key, one in self._sums.items() if key not in due}
            self.is_waiting = bool(self._sums)
        for one in due.values():
            self.send(one)
