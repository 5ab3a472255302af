"""A mailbox that can be closed.

Pykka checks a flag before it puts a message into a plain queue, so a message that is put after the
actor's last look is never answered and its caller waits forever. Closing the mailbox under its own lock
leaves no such moment.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Inbox:
    """Envelopes, first in, first out, from any thread; after `close` each goes to `refuse` at once."""

    def __init__(self) -> None:
        self._messages: deque[Any] = deque()
        self._ready = threading.Condition()
        self._refuse: Callable[[Any], None] | None = None
        self._taken: Any = None

    def put(self, message: Any) -> None:
        """Add a message, or refuse it when the mailbox is closed. Never blocks."""
        with self._ready:
            refuse = self._refuse
            if refuse is None:
                self._messages.append(message)
                self._ready.notify()
                return
        refuse(message)

    def get(self) -> Any:
        """Take the oldest message; wait for one if there is none."""
        if self._taken is not None:
            # Pykka's loop keeps its last envelope while it waits here, and with it what should end with its
            # holder.
            self._taken.message = None
        with self._ready:
            while not self._messages:
                self._ready.wait()
            self._taken = self._messages.popleft()
            return self._taken

    def qsize(self) -> int:
        return len(self._messages)

    def messages(self) -> list[Any]:
        with self._ready:
            return [envelope.message for envelope in self._messages]

    def empty(self) -> bool:
        return not self._messages

    def close(self, refuse: Callable[[Any], None]) -> None:
        """Refuse what waits and whatever comes from now on."""
        with self._ready:
            self._refuse = refuse
            waiting = list(self._messages)
            self._messages.clear()
        for message in waiting:
            refuse(message)
