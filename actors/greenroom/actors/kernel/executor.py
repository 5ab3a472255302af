"""Runs one core, message by message, without a thread: `Actor` and tests put one around it.

A turn is: decide, persist, apply, effects, settle, reply (`steps.py`, `answers.py`). What an exception costs:

* in `decide`, `apply` or `react`: its command, which is tried twice and then refused. Deciding is pure, so
  nothing has happened;
* in `settle` right after a command that changed only volatile state: that command. The change is taken back;
* in `settle` otherwise: nothing at first. It is retried with growing pauses, and once with a fresh volatile
  state, while commands are decided on as before;
* in the effect handler: that effect. The actor is rebuilt and finds by looking what came of it.

Each is stored as `command_parked`. Only a journal that may have lost something stops the system.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from greenroom.actors.journal.port import JournalFailed, JournalFull, NotWritten
from greenroom.actors.kernel import refusals
from greenroom.actors.kernel.answers import Answers, Asked, Leases, Waiter
from greenroom.actors.kernel.clock import Clock, Moment, Timer
from greenroom.actors.kernel.codec import CannotEncode
from greenroom.actors.kernel.core import (
    Answer,
    Command,
    Core,
    Decision,
    Effect,
    EffectHandler,
    Later,
    NotUnderstood,
    Recovered,
    Tell,
    fault,
)
from greenroom.actors.kernel.errors import (
    ActorStopped,
    AskExpired,
    KernelError,
    Refusal,
    Refused,
    SystemFailed,
)
from greenroom.actors.kernel.steps import SETTLE_ROUNDS, Prepared, Restless, Steps
from greenroom.actors.kernel.store import Store
from greenroom.actors.kernel.supervision import BackOff, Intensity, in_one_line

_log = logging.getLogger(__name__)

TICK = 5.0
"""Seconds after which a core is asked again what follows, whether or not it asked to be woken."""
RETRY_AFTER_NOT_WRITTEN = 1.0
"""Seconds after which a report that could not be stored is handled again."""
_TRIES = 30
"""How often a report is handled again when the journal refuses it for another reason than space."""
_SHORTEST_WAIT = 0.01
"""A core that asks to be woken in the past must not keep a processor busy."""
_FAILURES_IN_A_ROW = 3
"""Failed commands in a row after which the volatile state may be to blame."""
_HOPELESS = 3
"""Failures of `settle` in a row, each tried twice, after which asks that wait are refused."""


class Wake(msgspec.Struct, frozen=True):
    """Time has passed."""

    number: int
    """Tells the timer that is set from one that fired while it was being cancelled."""


class Executor:
    """Runs one core."""

    def __init__(
        self,
        core: Core[Any, Any],
        effect_handler: EffectHandler,
        observe: Callable[[Any], Any] | None,
        *,
        state: Any,
        versions: dict[str, int],
        store: Store,
        clock: Clock,
        leases: Leases,
        send: Callable[[Tell, str], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`send` delivers to other actors, `failed` stops the system; `post` has to be set before `start`."""
        self.post: Callable[[Asked | Wake], None]
        """Puts a message into this actor's own mailbox, from any thread."""
        self.answers = Answers(
            lambda asked, answer: leases.begin(answer, partial(self.withdraw, asked.command, asked.cause))
        )
        self.postponed: list[Asked] = []
        """Reports that wait for room in the journal, to be posted again."""
        self._core = core
        self._effect_handler = effect_handler
        self._observe = observe
        self._steps: Steps[Any, Any] = Steps(core, store, state, versions)
        self._store = store
        self._clock = clock
        self._send = send
        self._failed = failed
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._timer_number = 0
        self._rebuilds = Intensity()
        self._rebuild_due = False
        self._unrecovered: Asked | None = None
        """The first look, when it failed and is to be tried again."""
        self._stuck = BackOff()
        """Of `settle`."""
        self._is_restless = False
        """It may do one thing a try, so that it cannot fill the journal."""
        self._failures = 0
        """Commands in a row that could not be decided on."""

    @property
    def address(self) -> Any:
        """Of its core."""
        return self._core.address

    @property
    def state(self) -> Any:
        """The durable state; an immutable value, so reading it from any thread is safe."""
        return self._steps.state

    @property
    def volatile(self) -> Any:
        """The volatile state, as immutable."""
        return self._steps.volatile

    # messages

    def start(self) -> None:
        """Take the first look at the world. Raises if that fails with an empty journal too.

        What only a stored event breaks must not keep the system from starting: it is tried again.
        """
        self._handle(Asked(command=Recovered(), cause=""))
        if self._stuck.failures:
            now, core = self._clock.now(), self._core
            observe = self._observe or (lambda volatile: volatile)
            core.decide(core.initial(), Recovered(), now, observe(core.initial_volatile()))
            core.settle(core.initial(), now, observe(core.initial_volatile()))

    def handle(self, message: Asked | Wake) -> None:
        """Handle one message. Never raises: Pykka would stop every actor of the process."""
        asked = message if isinstance(message, Asked) else None
        try:
            if self._store.failure is not None:
                self.refuse(message)
            elif asked is not None:
                self._receive(asked)
            elif isinstance(message, Wake):
                if message.number == self._timer_number:
                    self._timer = None
                self._finish(self._clock.now())
            if self._rebuild_due and self._rebuilds.allows(self._clock.now().monotonic):
                self.rebuild()
        except JournalFailed as error:
            self._failed(error)
            self.refuse(message)
        except BaseException as error:  # noqa: BLE001 - see above
            _log.critical("%s: the kernel itself failed", self.address, exc_info=error)
            if asked is not None:
                asked.fail(Refused(refusals.failed_twice(self.address, error)))

    def refuse(self, message: object) -> None:
        """Answer a message that will not be handled."""
        if isinstance(message, Asked):
            message.fail(self._gone())

    def withdraw(self, command: Command[Any], cause: str) -> None:
        """Take a command back whose answer cannot be used any more. From any thread."""
        undo = command.withdrawn()
        if undo is not None:
            self.post(Asked(command=undo, cause=cause))

    def rebuild(self) -> None:
        """Begin with a fresh volatile state and look at the world; asks that wait go on waiting if possible.

        The durable state stays: it is an immutable value that was taken over only when it was stored, so no
        exception can have harmed it, and a rebuild needs neither the disk nor a descriptor.
        """
        self._rebuild_due = False
        _log.warning("%s is rebuilt", self.address)
        waiters = self.answers.take()
        self._steps.volatile = self._core.initial_volatile()
        self._unrecovered = None
        self._stuck.try_now()
        self._handle(Asked(command=Recovered(), cause=""))
        for one in waiters:
            if one.repeatable:
                self._receive(one.asked)
            else:
                one.asked.fail(ActorStopped(f"{self.address} was rebuilt; ask again"))

    def close(self) -> None:
        """Fail all asks that wait: no more messages will be handled."""
        if self._timer is not None:
            self._timer.cancel()
        self.answers.fail(self._gone)

    # one turn

    def _receive(self, asked: Asked) -> None:
        if asked.reply is not None:
            if asked.deadline is not None and self._clock.now().monotonic >= asked.deadline:
                asked.fail(AskExpired(f"{self.address} was too busy to answer in time"))
            if asked.reply.done():
                return
        self._handle(asked)

    def _handle(self, asked: Asked) -> None:
        before = self._steps.volatile
        decided = self._decide(asked)
        if decided is None:
            return
        now, done = decided
        reply = done.decision.reply
        # Then it has changed nothing but what is volatile, which can be taken back and decided again.
        slight = done.batch is None and not done.effects
        if isinstance(reply, Later) and asked.reply is not None:
            # Before the effects, since one of them may be the very answer.
            self.answers.wait(reply.key, Waiter(asked, slight or asked.command.REPEATABLE))
        if slight and asked.reply is not None:
            self._finish(now, done, asked, taken_back_to=(before,))
        else:
            self._finish(now, done, asked)

    def _decide(self, asked: Asked) -> tuple[Moment, Prepared] | None:
        """Decide on a command and store its events; None when that failed, which has been dealt with."""
        error: BaseException | None = None
        for _ in range(2):
            now, prepared = self._clock.now(), None
            try:
                decision = self._steps.decide(asked.command, now, self._look())
                prepared = self._steps.prepare(decision, asked.cause)
                self._commit(prepared)
            except JournalFailed:
                raise
            except NotWritten as refusal:
                if not self._not_written(asked, refusal, prepared):
                    self._put_aside(asked, refusal)
                return None
            except NotUnderstood as mistake:
                _log.warning("%s (caused by %s)", mistake, asked.cause or "the host")
                asked.fail(Refused(refusals.not_understood(mistake)))
                return None
            except BaseException as problem:  # noqa: BLE001 - whatever it is, it is this command's
                error = problem
            else:
                self._failures = 0
                return now, prepared
        assert error is not None
        self._put_aside(asked, error)
        return None

    def _commit(self, prepared: Prepared) -> None:
        self._steps.commit(prepared)
        for left_out in prepared.decision.faults:
            self._store.park(self._core, left_out, prepared.cause)

    def _finish(
        self,
        now: Moment,
        done: Prepared | None = None,
        asked: Asked | None = None,
        taken_back_to: tuple[Any] | None = None,
    ) -> None:
        """Carry out the effects, settle what follows, and only then answer.

        `taken_back_to` holds the volatile state to go back to should nothing follow from what was `asked`.
        """
        try:
            whole = self._perform(done.effects) if done is not None else True
            if asked is not None and not whole:
                # Not a refusal: what was decided has happened. Others that wait for it are asked again.
                failed = f"{self.address} failed on this command and was rebuilt"
                asked.fail(ActorStopped(f"{failed}; check what it did before you ask again"))
            elif asked is not None and done is not None and not isinstance(done.decision.reply, Later):
                self.answers.hold(asked, done.decision.reply)
            culprit = self._go_on(now, is_suspect=taken_back_to is not None)
            if culprit is not None and asked is not None and taken_back_to is not None:
                self._take_back(asked, taken_back_to[0], culprit)
                self._go_on(now)
        finally:
            # Whatever has failed: these answers were decided and stored before.
            self.answers.release()

    def _perform(self, effects: Sequence[tuple[Effect, str]]) -> bool:
        """Begin effects; False when one of them could not be begun."""
        whole = True
        for effect, cause in effects:
            try:
                if isinstance(effect, Tell):
                    self._send(effect, effect.cause or cause)
                elif isinstance(effect, Answer):
                    self.answers.hold_for(effect.key, effect.outcome)
                else:
                    self._effect_handler.perform(effect, cause)
            except JournalFailed:
                raise
            except BaseException as error:  # noqa: BLE001 - the effects after it are no part of it
                whole = False
                self._store.park(self._core, fault(error, doing=type(effect).__name__, about=cause), cause)
                # Its event is stored, and what came of it is found by looking.
                self._rebuild_due = True
        return whole

    # what follows

    def _go_on(self, now: Moment, *, is_suspect: bool = False) -> BaseException | None:
        """Do what follows from the state.

        It is tried twice. If it fails, with `is_suspect` and nothing changed meanwhile, the command before it
        is to blame, and our caller takes it back: the error is returned. Otherwise it is tried again after a
        pause.
        """
        waits = self._stuck.waits_until(now.monotonic)
        if waits is not None:
            self._wake_at(waits)
            self._refuse_if_hopeless()
            return None
        if self._unrecovered is not None:
            again, self._unrecovered = self._unrecovered, None
            self._handle(again)
            return None
        error: BaseException | None = None
        before = self._steps.commits
        for _ in range(2):
            try:
                wake_at = self._settle(now)
            except JournalFailed:
                raise
            except BaseException as problem:  # noqa: BLE001 - whatever it is, commands are decided on still
                error = problem
                self._is_restless = isinstance(error, Restless)
                if self._is_restless:
                    break
            else:
                self._stuck.succeeded()
                self._is_restless = False
                self._wake_at(max(wake_at, now.monotonic + _SHORTEST_WAIT))
                return None
        assert error is not None
        if is_suspect and self._steps.commits == before:
            return error
        self._store.park(self._core, fault(error, doing="settle"), "")
        self._retry_later(now)
        # The volatile state may be to blame, but not for ever.
        self._rebuild_due = self._rebuild_due or self._stuck.failures == _HOPELESS - 1
        self._refuse_if_hopeless()
        return None

    def _settle(self, now: Moment) -> float:
        """Settle; the monotonic second of the next look."""
        wake_at = now.monotonic + TICK
        rounds = 1 if self._is_restless else SETTLE_ROUNDS
        for decision in self._steps.following(lambda: now, self._look, rounds):
            try:
                prepared = self._steps.prepare(decision, "")
                self._commit(prepared)
            except CannotEncode:
                raise
            except NotWritten as error:
                _log.warning("%s waits, its journal takes nothing: %s", self.address, error)
                self._settle_unstored(decision)
                return now.monotonic + RETRY_AFTER_NOT_WRITTEN
            self._perform(prepared.effects)
            if decision.wake_at is not None and decision.wake_at < wake_at:
                wake_at = decision.wake_at
        return wake_at

    def _settle_unstored(self, decision: Decision[Any]) -> None:
        """Do what needs no event, such as refusing asks that wait for something that cannot be stored."""
        if decision.if_not_stored is not None:
            if decision.if_not_stored.events:
                raise ValueError(f"{self.address} offers events in place of events")
            prepared = self._steps.prepare(decision.if_not_stored, "")
            self._commit(prepared)
            self._perform(prepared.effects)

    def _look(self) -> Any:
        volatile = self._steps.volatile
        if self._observe is None:
            return volatile
        try:
            return self._observe(volatile)
        except Exception as error:  # noqa: BLE001 - what was observed before is better than nothing
            self._store.park(self._core, fault(error, doing="look at what others own"), "")
            return volatile

    def _wake_at(self, monotonic: float) -> None:
        # A timer that fires too early costs one look at the state; to set one on each message costs more.
        if self._timer is not None:
            if self._timer_at <= monotonic:
                return
            self._timer.cancel()
        self._timer_number += 1
        self._timer_at = monotonic
        wake = Wake(self._timer_number)
        self._timer = self._clock.call_at(monotonic, lambda: self.post(wake))

    # trouble

    def _put_aside(self, asked: Asked, error: BaseException) -> None:
        """This command fails whenever it is decided on: park it and refuse it."""
        about = fault(error, doing=type(asked.command).__name__)
        self._store.park(self._core, about, asked.cause, asked.command)
        if isinstance(asked.command, Recovered):
            self._unrecovered = asked
            self._retry_later(self._clock.now())
        else:
            asked.fail(Refused(refusals.failed_twice(self.address, error)))
        self._failures += 1
        if self._failures >= _FAILURES_IN_A_ROW and self._is_volatile_to_blame(asked.command):
            self._rebuild_due = True

    def _is_volatile_to_blame(self, command: Command[Any]) -> bool:
        """Whether a fresh volatile state would do: deciding is pure, so that can be tried."""
        try:
            self._steps.decide(command, self._clock.now(), self._core.initial_volatile())
        except BaseException:  # noqa: BLE001 - no: it is the command, or the code
            return False
        return True

    def _retry_later(self, now: Moment) -> None:
        self._stuck.failed(now.monotonic)
        self._wake_at(self._stuck.waits_until(now.monotonic) or 0.0)

    def _take_back(self, asked: Asked, volatile: Any, error: BaseException) -> None:
        """Nothing can follow from what this command has changed, so it changes nothing and is refused."""
        self._steps.volatile = volatile
        self.answers.forget(asked)
        about = fault(error, doing=type(asked.command).__name__)
        self._store.park(self._core, about, asked.cause, asked.command)
        asked.fail(Refused(refusals.failed_twice(self.address, error)))

    def _refuse_if_hopeless(self) -> None:
        """While nothing follows from anything, no ask waits without an end."""
        for one in self.answers.take() if self._stuck.failures >= _HOPELESS else ():
            one.asked.fail(Refused(refusals.stuck(self.address)))
            # The actor may recover by itself, and must not do then what was refused.
            self.withdraw(one.asked.command, one.asked.cause)

    def _not_written(self, asked: Asked, error: NotWritten, prepared: Prepared | None) -> bool:
        """Refuse an ask, or keep a report for later; False when it can never be stored."""
        if asked.reply is not None:
            asked.fail(Refused(refusals.not_taken(error)))
            return True
        if isinstance(error, CannotEncode) or (not isinstance(error, JournalFull) and asked.tries >= _TRIES):
            return False
        # A report says what has happened, so it must not be lost because the disk is full for a while. Asks
        # that wait for it must not wait for space.
        _log.warning("%s retries later, the journal takes nothing: %s", self.address, error)
        again = msgspec.structs.replace(asked, tries=asked.tries + 1)
        self.postponed.append(again)
        self._clock.call_at(self._clock.now().monotonic + RETRY_AFTER_NOT_WRITTEN, partial(self._post, again))
        if prepared is not None:
            if prepared.decision.if_not_stored is not None:
                self._settle_unstored(prepared.decision)
            for effect, _ in prepared.effects:
                if isinstance(effect, Answer):
                    refused = isinstance(effect.outcome, Refusal)
                    self.answers.hold_for(
                        effect.key, effect.outcome if refused else refusals.unrecorded(error)
                    )
        self.answers.release()
        return True

    def _post(self, postponed: Asked) -> None:
        self.postponed.remove(postponed)
        self.post(postponed)

    def _gone(self) -> KernelError:
        if self._store.failure is not None:
            error = SystemFailed(f"the system has stopped: {in_one_line(self._store.failure)}")
            error.__cause__ = self._store.failure
            return error
        return ActorStopped(f"{self.address} has stopped")
