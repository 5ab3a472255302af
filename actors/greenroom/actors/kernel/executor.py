"""Runs one core, message by message, without a thread: `Actor` and tests put one around it.

A turn is: decide, persist, apply, effects, settle, reply (`steps.py`, `answers.py`). What an exception costs:

* in `decide`, `apply` or `react`: the command, which is tried twice and then refused; nothing has happened;
* in `settle` right after a command that changed only volatile state: the command, whose change is undone;
* in `settle` otherwise: nothing at first. It is retried with growing pauses, and once with a fresh volatile
  state; commands are decided meanwhile;
* in the effect handler: the effect. The actor is rebuilt and looks for what came of it.

Each is stored as `command_parked`. Only a journal that may have lost something stops the system.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from greenroom.actors.journal.port import JournalFailed, JournalFull, NotWritten
from greenroom.actors.kernel.answers import (
    Answers,
    Asked,
    Leases,
    Waiter,
    failed_twice,
    not_taken,
    not_understood,
    stuck,
    unrecorded,
)
from greenroom.actors.kernel.clock import Clock, Moment, Timer
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
from greenroom.actors.kernel.event_store import CannotEncode, Store
from greenroom.actors.kernel.steps import SETTLE_ROUNDS, Prepared, Restless, Steps
from greenroom.actors.kernel.supervision import BackOff, Intensity, in_one_line

_log = logging.getLogger(__name__)

TICK = 5.0
"""Seconds after which a core settles again, even if it did not ask to be woken."""
RETRY_AFTER_NOT_WRITTEN = 1.0
"""Seconds after which a report that could not be stored is handled again."""
_TRIES = 30
"""How often a report is handled again if the journal refuses it for a reason other than space."""
_SHORTEST_WAIT = 0.01
"""So that a core that asks to be woken in the past does not keep a processor busy."""
_FAILURES_IN_A_ROW = 3
"""Failed commands in a row after which the volatile state may be to blame."""
_HOPELESS = 3
"""Failures of `settle` in a row, each tried twice, after which waiting asks are refused."""


class Wake(msgspec.Struct, frozen=True):
    number: int
    """Of the timer: one may fire while it is being cancelled."""


class Executor:
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
        """`send` delivers to other actors, `failed` stops the system. Set `post` before `start`."""
        self.post: Callable[[Asked | Wake], None]
        """Puts a message into this actor's own mailbox, from any thread."""
        self.answers = Answers(
            lambda asked, answer: leases.begin(answer, partial(self.withdraw, asked.command, asked.cause))
        )
        self.postponed: list[Asked] = []
        """Reports that wait for room in the journal."""
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
        """`Recovered`, if it failed and is to be retried."""
        self._stuck = BackOff()
        """Of `settle`."""
        self._is_restless = False
        """It gets one round a try, so that it cannot fill the journal."""
        self._failures = 0
        """Of `decide`, in a row."""

    @property
    def address(self) -> Any:
        return self._core.address

    @property
    def state(self) -> Any:
        """The durable state; an immutable value, so reading it from any thread is safe."""
        return self._steps.state

    @property
    def volatile(self) -> Any:
        return self._steps.volatile

    # messages

    def start(self) -> None:
        """Let the core look at the world. A failure is raised only if an empty journal brings it, too."""
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
                try:
                    self._go_on(self._clock.now())
                finally:
                    self.answers.release()
            if self._rebuild_due and self._rebuilds.allows(self._clock.now().monotonic):
                self.rebuild()
        except JournalFailed as error:
            self._failed(error)
            self.refuse(message)
        except BaseException as error:  # noqa: BLE001 - see above
            _log.critical("%s: the kernel itself failed", self.address, exc_info=error)
            if asked is not None:
                asked.fail(Refused(failed_twice(self.address, error)))

    def refuse(self, message: object) -> None:
        if isinstance(message, Asked):
            message.fail(self._gone())

    def withdraw(self, command: Command[Any], cause: str) -> None:
        """Take back a command whose answer cannot be used. From any thread."""
        undo = command.withdrawn()
        if undo is not None:
            self.post(Asked(command=undo, cause=cause))

    def rebuild(self) -> None:
        """Start over with a fresh volatile state; waiting asks keep waiting if possible.

        The durable state stays: no exception can have harmed it, since it is immutable and was taken over
        only once it was stored.
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
        # It changed nothing but volatile state: that can be undone, and decided again.
        slight = done.batch is None and not done.effects
        if isinstance(reply, Later) and asked.reply is not None:
            # Before the effects, since one of them may be the answer.
            self.answers.wait(reply.key, Waiter(asked, slight or asked.command.REPEATABLE))
        try:
            if not self._perform(done.effects):
                # Not a refusal: the events are stored. Others that wait for it are asked again.
                failed = f"{self.address} failed on this command and was rebuilt"
                asked.fail(ActorStopped(f"{failed}; check what it did before you ask again"))
            elif not isinstance(reply, Later):
                self.answers.hold(asked, reply)
            culprit = self._go_on(now, is_suspect=slight and asked.reply is not None)
            if culprit is not None:
                self._steps.volatile = before
                self.answers.forget(asked)
                self._park(culprit, type(asked.command).__name__, asked)
                asked.fail(Refused(failed_twice(self.address, culprit)))
                self._go_on(now)
        finally:
            # Whatever failed: these answers were decided and stored before.
            self.answers.release()

    def _decide(self, asked: Asked) -> tuple[Moment, Prepared] | None:
        """Decide on a command and store its events; None if that failed and has been dealt with."""
        error: BaseException | None = None
        for _ in range(2):
            now, prepared = self._clock.now(), None
            try:
                decision = self._core.decide(self._steps.state, asked.command, now, self._look())
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
                asked.fail(Refused(not_understood(mistake)))
                return None
            except BaseException as problem:  # noqa: BLE001 - whatever it is, it costs this command only
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

    def _perform(self, effects: Sequence[tuple[Effect, str]]) -> bool:
        """Begin effects; False if one of them raised."""
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
            except BaseException as error:  # noqa: BLE001 - the effects after it do not depend on it
                whole = False
                self._store.park(self._core, fault(error, doing=type(effect).__name__, about=cause), cause)
                # Its event is stored; a look at the world finds what came of it.
                self._rebuild_due = True
        return whole

    # what follows

    def _go_on(self, now: Moment, *, is_suspect: bool = False) -> BaseException | None:
        """Do what follows from the state, in two tries.

        If both fail, nothing was stored and `is_suspect`, the error is returned: the command before is to
        blame. Otherwise it is retried after a pause.
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
            except BaseException as problem:  # noqa: BLE001 - whatever it is, commands are still decided
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
        self._park(error, "settle")
        self._retry_later(now)
        # The volatile state may be to blame: try a fresh one, once.
        self._rebuild_due = self._rebuild_due or self._stuck.failures == _HOPELESS - 1
        self._refuse_if_hopeless()
        return None

    def _settle(self, now: Moment) -> float:
        """Settle until nothing follows; returns the monotonic second of the next time."""
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
        """Do what needs no event, such as refusing asks that would need one."""
        if decision.if_not_stored is not None:
            if decision.if_not_stored.events:
                raise ValueError(f"{self.address} stores events in `if_not_stored`, which must not")
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
            self._park(error, "look at what others own")
            return volatile

    def _wake_at(self, monotonic: float) -> None:
        # A timer that fires too early costs one `settle`; setting one for each message costs more.
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
        """Deciding on this command fails: park and refuse it."""
        self._park(error, type(asked.command).__name__, asked)
        if isinstance(asked.command, Recovered):
            self._unrecovered = asked
            self._retry_later(self._clock.now())
        else:
            asked.fail(Refused(failed_twice(self.address, error)))
        self._failures += 1
        if self._failures >= _FAILURES_IN_A_ROW and self._is_volatile_to_blame(asked.command):
            self._rebuild_due = True

    def _park(self, error: BaseException, doing: str, asked: Asked | None = None) -> None:
        cause, command = (asked.cause, asked.command) if asked is not None else ("", None)
        self._store.park(self._core, fault(error, doing=doing), cause, command)

    def _is_volatile_to_blame(self, command: Command[Any]) -> bool:
        """Whether the command can be decided on with a fresh volatile state."""
        try:
            self._core.decide(self._steps.state, command, self._clock.now(), self._core.initial_volatile())
        except BaseException:  # noqa: BLE001 - no: it is the command, or the code
            return False
        return True

    def _retry_later(self, now: Moment) -> None:
        self._stuck.failed(now.monotonic)
        self._wake_at(self._stuck.waits_until(now.monotonic) or 0.0)

    def _refuse_if_hopeless(self) -> None:
        for one in self.answers.take() if self._stuck.failures >= _HOPELESS else ():
            one.asked.fail(Refused(stuck(self.address)))
            # An actor that recovers must not do what was refused.
            self.withdraw(one.asked.command, one.asked.cause)

    def _not_written(self, asked: Asked, error: NotWritten, prepared: Prepared | None) -> bool:
        """Refuse an ask, or keep a report for later; False if it can never be stored."""
        if asked.reply is not None:
            asked.fail(Refused(not_taken(error)))
            return True
        if isinstance(error, CannotEncode) or (not isinstance(error, JournalFull) and asked.tries >= _TRIES):
            return False
        # What has happened must not be lost while the disk is full; asks must not wait for space.
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
                    self.answers.hold_for(effect.key, effect.outcome if refused else unrecorded(error))
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
