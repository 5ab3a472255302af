"""Those who were told `Later`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenroom.actors.kernel.errors import KernelError, Refusal, Refused
from greenroom.actors.kernel.reply import Reply


class Waiting:
    """Replies that are still owed, by the key their answer will have. Used by one thread."""

    def __init__(self) -> None:
        self._replies: dict[str, list[Reply]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._replies.values()))

    def add(self, key: str, reply: Reply) -> None:
        """Owe an answer."""
        # Whoever polls with a short deadline must not leave a trail of replies nobody reads.
        others = [one for one in self._replies.get(key, ()) if not one.done()]
        self._replies[key] = [*others, reply]

    def answer(self, key: str, outcome: Any) -> None:
        """Answer everybody who waits for that key."""
        for reply in self._replies.pop(key, ()):
            give(reply, outcome)

    def fail(self, error: Callable[[], KernelError]) -> None:
        """Give each of them an error of its own: one exception raised in two threads mixes its tracebacks."""
        replies, self._replies = self._replies, {}
        for waiting in replies.values():
            for reply in waiting:
                reply.fail(error())


def give(reply: Reply, outcome: Any) -> None:
    """Answer, or refuse when the outcome is a refusal."""
    if isinstance(outcome, Refusal):
        reply.fail(Refused(outcome))
    else:
        reply.set(outcome)
