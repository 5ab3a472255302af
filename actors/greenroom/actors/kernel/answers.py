"""When an ask is answered, and when it is withdrawn.

Whether a core answers an ask at once or, after `Later`, with an `Answer` to its key: the answer is held until
the end of the turn, when all effects have begun and everything that follows is settled. An ask whose answer
can no longer be used, because its deadline has passed, its actor is stuck or the last reference to a leased
answer is gone, is withdrawn: its command's `withdrawn()` is sent after it.

So a caller that has an answer finds that every other actor has been told what the answer says.

`Reply` is Pykka's future, but awaiting it does not block the loop: Pykka's own `await future` yields once and
then blocks in `get()` (jodal/pykka, `_future.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import msgspec
import pykka

from greenroom.actors.journal.port import JournalFull, NotWritten
from greenroom.actors.kernel.core import Address, Command, NotUnderstood
from greenroom.actors.kernel.errors import Forked, KernelError, Refusal, Refused
from greenroom.actors.kernel.event_store import CannotEncode
from greenroom.actors.kernel.supervision import in_one_line

_log = logging.getLogger(__name__)
_thread = threading.local()


def never_wait_here() -> None:
    """Declare that the running thread belongs to an actor, which must not wait for another's answer."""
    _thread.is_actor = True


class NoAnswerYet(pykka.Timeout, TimeoutError):
    """The timeout of `Reply.get` has passed; the answer may still come."""


R = TypeVar("R")


class Reply(pykka.ThreadingFuture[R]):
    """A slot for one answer, readable from threads (`get`) and loops (`await`)."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: list[Callable[[], None]] = []
        self._callbacks_lock = threading.Lock()
        self._done = False
        self._pid = os.getpid()

    def done(self) -> bool:
        """True once there is an answer or an error."""
        return self._done

    def get(self, *, timeout: float | None = None) -> R:
        """Wait for the answer and return or raise it. Raises NoAnswerYet after `timeout` seconds."""
        if not self._done and getattr(_thread, "is_actor", False):
            # Two actors that wait for each other never return; neither does one that waits for itself.
            raise RuntimeError(
                "an actor must not wait for an answer inside a handler: use `tell` and a report"
            )
        self._expect_an_answer()
        if timeout is not None:
            timeout = min(timeout, threading.TIMEOUT_MAX)
        try:
            answer: R = super().get(timeout=timeout)
        except pykka.Timeout:
            raise NoAnswerYet(f"no answer within {timeout:g} seconds") from None
        return answer

    def set_get_hook(self, func: Any) -> None:  # noqa: ARG002 - Pykka's signature
        """Not offered: Pykka's `map` and its kin compute inside `get`, so the result could not be awaited."""
        raise TypeError("`map` and similar methods cannot be awaited: await the answer, then map it")

    def set(self, value: Any = None) -> None:
        """Give the answer. A second answer is ignored."""
        # queue.Full is how Pykka says that there is one already; an expiry and the real answer may race.
        try:
            super().set(value)
        except queue.Full:
            return
        self._fire()

    def fail(self, error: BaseException) -> bool:
        """Give an error instead of an answer; False when there is one already."""
        try:
            super().set_exception((type(error), error, error.__traceback__))
        except queue.Full:
            return False
        self._fire()
        return True

    def on_done(self, callback: Callable[[], None]) -> None:
        """Call back once, from whichever thread answers, or at once when there is an answer already."""
        with self._callbacks_lock:
            if not self._done:
                self._callbacks.append(callback)
                return
        callback()

    def __await__(self) -> Generator[Any, None, R]:
        self._expect_an_answer()
        loop = asyncio.get_running_loop()
        answered = loop.create_future()

        def settle() -> None:
            if not answered.done():
                answered.set_result(None)

        def wake() -> None:
            # The loop may have been closed meanwhile; then nothing waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle)

        self.on_done(wake)
        yield from answered.__await__()
        return self.get(timeout=0)

    def _expect_an_answer(self) -> None:
        if not self._done and os.getpid() != self._pid:
            raise Forked("this was asked before the fork, so only the parent process gets the answer")

    def _fire(self) -> None:
        with self._callbacks_lock:
            self._done = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001 - the caller failed, not the actor that answers
                _log.exception("a callback of an answer failed")


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


_WHERE = "The journal has it as command_parked, with the place of the failure."


def failed_twice(address: Address, error: BaseException) -> Refusal:
    """The command itself cannot be decided on."""
    message = f"{address} failed on this twice ({in_one_line(error)})."
    return Refusal(code="internal_error", message=message, advice=_WHERE, kind="internal")


def stuck(address: Address) -> Refusal:
    """What follows from the actor's state cannot be decided on, whatever was asked."""
    message = f"{address} cannot decide what to do next."
    advice = f"It retries automatically; try again later. {_WHERE}"
    return Refusal(code="internal_error", message=message, advice=advice, kind="unavailable", retry_after=5.0)


def not_understood(error: NotUnderstood) -> Refusal:
    return Refusal(
        code="not_understood",
        message=f"{error}.",
        advice="Send it to the actor that handles it.",
        kind="invalid",
    )


def bad_fields(command: str, problem: str) -> Refusal:
    return Refusal(code="bad_field", message=f"{command}: {problem}.", advice="Nothing was done.")


def not_taken(error: NotWritten) -> Refusal:
    """What was decided could not be stored, so nothing has happened."""
    code, advice = "journal_refused", "Try again; if it fails again, verify the journal."
    if isinstance(error, JournalFull):
        code, advice = "journal_full", "Make room on its disk. What needs nothing stored still works."
    elif isinstance(error, CannotEncode):
        code, advice = "not_storable", "This is a bug; please report it."
    return Refusal(
        code=code, message=f"The journal cannot store this: {error}.", advice=advice, kind="exhausted"
    )


def unrecorded(error: NotWritten) -> Refusal:
    """What someone waits for has been done and cannot be recorded."""
    return Refusal(
        code="journal_full" if isinstance(error, JournalFull) else "journal_refused",
        message=f"This was done, but the journal cannot store it: {error}.",
        advice="It will be stored as soon as there is room; until then, it may not be visible.",
        kind="exhausted",
    )
