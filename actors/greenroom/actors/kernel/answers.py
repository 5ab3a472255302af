"""When an ask is answered, and when it is withdrawn.

Whether a core answers an ask at once or, after `Later`, with an `Answer` to its key: the answer is held until
the end of the turn, when all effects have begun and everything that follows is settled. An ask whose answer
can no longer be used, because its deadline has passed, its actor is stuck or the last reference to a leased
answer is gone, is withdrawn: its command's `withdrawn()` is sent after it.

So a caller that has an answer finds that every other actor has been told what the answer says.
"""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from greenroom.actors.kernel.core import Command
from greenroom.actors.kernel.errors import KernelError, Refusal, Refused
from greenroom.actors.kernel.reply import Reply

_log = logging.getLogger(__name__)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A command with where its answer goes; without `reply` it was sent by `tell`."""

    command: Command[Any]
    cause: str
    reply: Reply[Any] | None = None
    deadline: float | None = None
    """Monotonic second at which the ask expires."""
    tries: int = 0
    """How often the journal has refused what it made."""

    def fail(self, error: KernelError) -> None:
        """Give an error in place of an answer; no effect without `reply` or after an answer."""
        if self.reply is not None:
            self.reply.fail(error)


class Waiter(NamedTuple):
    """An ask that was answered `Later`."""

    asked: Asked
    repeatable: bool
    """The command may be decided on again after a rebuild."""


class Answers:
    """The asks of one actor that have no answer yet, and the answers held back until the turn ends.

    Used by one thread, but for `fail`.
    """

    def __init__(self, lease: Callable[[Asked, Any], None]) -> None:
        """`lease` is called with each answer to a leased command, before the caller has it."""
        self._lease = lease
        self._waiters: dict[str, list[Waiter]] = {}
        self._held: list[tuple[Asked, Any]] = []

    def __len__(self) -> int:
        return sum(map(len, self._waiters.values()))

    def wait(self, key: str, waiter: Waiter) -> None:
        # A caller that polls with short deadlines must not leave a trail of expired asks.
        others = [one for one in self._waiters.get(key, ()) if not _has_answer(one.asked)]
        self._waiters[key] = [*others, waiter]

    def hold(self, asked: Asked, outcome: Any) -> None:
        if asked.reply is not None:
            self._held.append((asked, outcome))

    def hold_for(self, key: str, outcome: Any) -> None:
        """Hold the answer to all asks that wait for a key."""
        self._held += [(one.asked, outcome) for one in self._waiters.pop(key, ())]

    def release(self) -> None:
        """Give the answers that are held: the turn has ended."""
        held, self._held = self._held, []
        for asked, outcome in held:
            if asked.reply is None or asked.reply.done():
                continue
            if isinstance(outcome, Refusal):
                asked.reply.fail(Refused(outcome))
                continue
            if asked.command.is_leased:
                self._lease(asked, outcome)
            asked.reply.set(outcome)

    def forget(self, asked: Asked) -> None:
        """Neither hold an answer to this ask nor let it wait: its turn is taken back."""
        self._held = [one for one in self._held if one[0] is not asked]
        left = {key: [one for one in some if one.asked is not asked] for key, some in self._waiters.items()}
        self._waiters = {key: some for key, some in left.items() if some}

    def take(self) -> list[Waiter]:
        """Remove and return all asks that wait, in the order of their keys."""
        waiters, self._waiters = self._waiters, {}
        return [one for some in waiters.values() for one in some if not _has_answer(one.asked)]

    def fail(self, error: Callable[[], KernelError]) -> None:
        """Give each ask that waits an error of its own: raised in two threads, one mixes its tracebacks."""
        for waiter in self.take():
            waiter.asked.fail(error())


class Leases:
    """Answers that hold something for as long as a caller holds them (`Command.is_leased`). Thread-safe."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._numbers = itertools.count()
        self._open: dict[int, weakref.finalize[Any, Any]] = {}

    def begin(self, answer: Any, withdraw: Callable[[], None]) -> None:
        """Withdraw with the last reference to the answer, in whichever thread that goes."""
        number = next(self._numbers)

        def end() -> None:
            self._open.pop(number, None)
            if os.getpid() == self._pid:
                withdraw()

        try:
            finalizer = weakref.finalize(answer, end)
        except TypeError:
            # A struct without `weakref=True`: it is answered all the same.
            _log.exception("an answer of type %s cannot be leased", type(answer).__name__)
            return
        # At the end of the process nothing is left to withdraw from.
        finalizer.atexit = False
        self._open[number] = finalizer

    def end_all(self) -> None:
        for finalizer in list(self._open.values()):
            finalizer()

    def drop(self) -> None:
        """Forget them: nothing is left to withdraw from."""
        while self._open:
            self._open.popitem()[1].detach()


def _has_answer(asked: Asked) -> bool:
    return asked.reply is None or asked.reply.done()
