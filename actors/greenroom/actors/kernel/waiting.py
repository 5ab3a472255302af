"""What was asked, and those who were told `Later`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from greenroom.actors.kernel.core import Command
from greenroom.actors.kernel.errors import KernelError, Refusal, Refused
from greenroom.actors.kernel.reply import Reply


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A command with where its answer goes; without `reply` it was told, not asked."""

    command: Command
    cause: str
    reply: Reply | None = None
    deadline: float | None = None
    """Monotonic second after which nobody waits any more."""
    tries: int = 0
    """How often the journal has refused what it made."""


class Waiter(NamedTuple):
    """Someone who was told `Later`."""

    asked: Asked
    reply: Reply
    repeatable: bool
    """The command may be decided on again after a rebuild."""


class Waiting:
    """Replies that are still owed, by the key their answer will have. Used by one thread."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[Waiter]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiters.values()))

    def add(self, key: str, waiter: Waiter) -> None:
        """Owe an answer."""
        # Someone who polls with a short deadline must not leave a trail of replies nobody reads.
        others = [one for one in self._waiters.get(key, ()) if not one.reply.done()]
        self._waiters[key] = [*others, waiter]

    def remove(self, reply: Reply) -> None:
        """Owe this one nothing any more."""
        for key, waiters in list(self._waiters.items()):
            left = [one for one in waiters if one.reply is not reply]
            if left:
                self._waiters[key] = left
            else:
                del self._waiters[key]

    def answer(self, key: str, outcome: Any) -> None:
        """Answer everybody who waits for that key."""
        for waiter in self._waiters.pop(key, ()):
            give(waiter.reply, outcome)

    def fail(self, error: Callable[[], KernelError]) -> None:
        """Give each of them an error of its own: one exception raised in two threads mixes its tracebacks."""
        for waiter in self.take():
            waiter.reply.fail(error())

    def take(self) -> list[Waiter]:
        """All who wait, in the order of their keys; nothing is owed here any more."""
        waiters, self._waiters = self._waiters, {}
        return [one for some in waiters.values() for one in some if not one.reply.done()]


def give(reply: Reply, outcome: Any) -> None:
    """Answer, or refuse when the outcome is a refusal."""
    if isinstance(outcome, Refusal):
        reply.fail(Refused(outcome))
    else:
        reply.set(outcome)
