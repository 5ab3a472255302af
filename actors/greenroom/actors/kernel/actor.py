"""The thin shell around a pure core: one Pykka actor, and nothing Pykka does that a host would regret.

What stock Pykka would do, and what we do instead, each with its test:

* an ask that races with stop is never answered → our `Inbox` can be closed;
* `SystemExit` in a handler stops every Pykka actor of the process → it is an ordinary error here;
* a host's `ActorRegistry.stop_all()` stops us → we are never in the registry;
* a failing start is silent → `started` is a reply that whoever starts the system waits for;
* a handler that raises on a tell kills the actor → it costs what it was about, and nothing else:

An exception in `decide`, `apply` or `react` costs its command, which is refused; deciding is pure, so nothing
has happened. One in `settle` right after a command that changed only volatile state costs that command: the
change is taken back. Any other one in `settle` is tried again with growing pauses, and once with a fresh
volatile state, while commands are decided on as before. One in the hands costs its effect; what came of it
is found by looking. Each is stored as `command_parked`. Only a journal that may have lost something stops
the system.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import pykka
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from greenroom.actors.journal.port import JournalFailed, JournalFull, NotWritten
from greenroom.actors.kernel import refusals
from greenroom.actors.kernel.clock import Moment, Timer
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
    StartFailed,
    SystemFailed,
)
from greenroom.actors.kernel.inbox import Inbox
from greenroom.actors.kernel.reply import Reply, never_wait_here
from greenroom.actors.kernel.supervision import BackOff, Intensity, in_one_line
from greenroom.actors.kernel.surroundings import Surroundings
from greenroom.actors.kernel.waiting import Asked, Waiter, Waiting, give

_log = logging.getLogger(__name__)

TICK = 5.0
"""Seconds after which a core is asked again what follows, whether or not it said so."""
RETRY_AFTER_NOT_WRITTEN = 1.0
"""Seconds after which a report that could not be stored is handled again."""
_SETTLE_ROUNDS = 200
_TRIES = 30
"""How often a report is handled again when the journal refuses it for another reason than space."""
_SHORTEST_WAIT = 0.01
"""A core that asks to be woken in the past must not keep a processor busy."""
_FUMBLES = 3
"""Commands in a row that fail before the volatile state, and not they, may be to blame."""
_HOPELESS = 3
"""Failures of `settle` in a row, each tried twice, after which whoever waits is told so."""


class _Wake(msgspec.Struct, frozen=True):
    """Time has passed. `number` tells the timer that is set from one that fired as it was cancelled."""

    number: int


class _Restless(Exception):
    """Each of a core's decisions leads to another."""


class Actor(pykka.ThreadingActor):
    """Runs one core: decide, persist, apply, effects, settle, then reply."""

    use_daemon_thread = True

    actor_inbox: Inbox

    def __init__(
        self,
        core: Core[Any, Any],
        effect_handler: EffectHandler,
        system: Surroundings,
        state: Any,
        versions: dict[str, int],
        observe: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.started = Reply()
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None
        """Set once it runs."""
        self._core = core
        self._effect_handler = effect_handler
        self._system = system
        self._clock = system.clock
        self._state = state
        self._versions = versions
        self._volatile = core.initial_volatile()
        self._observe = observe
        self._waiting = Waiting()
        self._owed: list[Callable[[], None]] = []
        """Answers that are given once what follows from the state has been settled."""
        self._unsaid: list[Answer] = []
        """Answers of the decision that could not be stored."""
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._timer_number = 0
        self._rebuilds = Intensity()
        self._rebuild_due = False
        self._unrecovered: Asked | None = None
        """The look at the world that failed and is to be tried again."""
        self._stuck = BackOff()
        """Of `settle`."""
        self._is_restless = False
        """It may do one thing a try, so that it cannot fill the journal."""
        self._fumbled = 0
        """Commands in a row that could not be decided on."""
        self._taken = 0
        """Decisions taken, to tell whether an attempt to settle has changed anything."""

    @staticmethod
    def _create_actor_inbox() -> Inbox:
        return Inbox()

    @staticmethod
    def _create_future() -> Reply:
        return Reply()

    def begin(self) -> None:
        """Start the thread. Unlike Pykka's `start`, this leaves the process-wide registry alone."""
        thread = threading.Thread(
            target=self._actor_loop, name=f"greenroom-{self._core.address}", daemon=True
        )
        thread.start()
        self.thread = thread

    def leave_behind(self) -> None:
        """Answer everybody who waits, whatever it is doing; its thread ends when its handler does."""
        self.actor_stopped.set()
        self.actor_inbox.close(self._refuse_envelope)
        self._waiting.fail(self._gone)

    @property
    def state(self) -> Any:
        """The durable state; an immutable value, so reading it from any thread is safe."""
        return self._state

    # Pykka's hooks

    def _actor_loop_setup(self) -> None:
        never_wait_here()
        try:
            self._handle(Asked(command=Recovered(), cause=""))
            self._blame_code_or_journal()
        except BaseException as error:  # noqa: BLE001 - whatever it is, whoever starts us must hear of it
            self.actor_stopped.set()
            failure = StartFailed(f"{self._core.address} could not start: {in_one_line(error)}")
            failure.__cause__ = error
            self.started.fail(failure)
            return
        self.started.set(None)

    def _blame_code_or_journal(self) -> None:
        """After a first look that failed: raise if it fails with an empty journal too.

        What only a stored event breaks must not keep the system from starting: it is tried again.
        """
        if not self._stuck.failures:
            return
        now, core = self._clock.now(), self._core
        initial_volatile = core.initial_volatile()
        core.decide(
            core.initial(),
            Recovered(),
            now,
            initial_volatile if self._observe is None else self._observe(initial_volatile),
        )
        core.settle(
            core.initial(),
            now,
            initial_volatile if self._observe is None else self._observe(initial_volatile),
        )

    def _actor_loop_teardown(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.actor_inbox.close(self._refuse_envelope)
        self._waiting.fail(self._gone)
        self.stopped.set()

    def _handle_receive(self, message: Any) -> Any:
        if isinstance(message, _ActorStop):
            return self._stop()
        asked = message if isinstance(message, Asked) else None
        try:
            if self._system.failure is not None:
                self._refuse(asked)
            elif asked is not None:
                self._receive(asked)
            elif isinstance(message, _Wake):
                if message.number == self._timer_number:
                    self._timer = None
                self._finish(self._clock.now())
            if self._rebuild_due:
                self._rebuild()
        except JournalFailed as error:
            self._give_up(asked, error)
        except BaseException as error:  # noqa: BLE001 - Pykka would stop every actor of the process
            _log.critical("%s: the shell itself failed", self._core.address, exc_info=error)
            if asked is not None and asked.reply is not None:
                asked.reply.fail(Refused(refusals.failed_twice(self._core.address, error)))
        finally:
            self._system.handled()
        return None

    # one message

    def _receive(self, asked: Asked) -> None:
        if asked.reply is not None:
            if asked.deadline is not None and self._clock.now().monotonic >= asked.deadline:
                asked.reply.fail(AskExpired(f"{self._core.address} was too busy to answer in time"))
            if asked.reply.done():
                return
        self._handle(asked)

    def _handle(self, asked: Asked) -> None:
        before = self._volatile
        decided = self._decide(asked)
        if decided is None:
            return
        now, decision, effects = decided
        later = decision.reply if isinstance(decision.reply, Later) else None
        # Then it has changed nothing but what is volatile, which can be taken back and decided again.
        slight = not decision.events and not effects
        if later is not None and asked.reply is not None:
            # Before the effects, since one of them may be the very answer.
            repeatable = slight or asked.command.REPEATABLE
            self._waiting.add(later.key, Waiter(asked, asked.reply, repeatable))
        answer = None
        if asked.reply is not None and later is None:
            answer = partial(give, asked.reply, decision.reply)
        if slight and asked.reply is not None:
            self._finish(now, (), answer, asked, before)
        else:
            self._finish(now, effects, answer, asked)

    def _decide(self, asked: Asked) -> tuple[Moment, Decision[Any], list[tuple[Effect, str]]] | None:
        """Decide on a command and store its events; None when that failed and whoever asked has heard so."""
        error: BaseException
        for _ in range(2):
            now, decision = self._clock.now(), Decision[Any]()
            try:
                decision = self._core.decide(self._state, asked.command, now, self._look())
                effects = self._take(decision, asked.cause)
            except JournalFailed:
                raise
            except NotWritten as refusal:
                if not self._not_written(asked, refusal, decision):
                    self._put_aside(asked, refusal)
                return None
            except NotUnderstood as mistake:
                _log.warning("%s (caused by %s)", mistake, asked.cause or "nobody")
                if asked.reply is not None:
                    asked.reply.fail(Refused(refusals.not_understood(mistake)))
                return None
            except BaseException as problem:  # noqa: BLE001 - whatever it is, it is this command's
                error = problem
            else:
                self._fumbled = 0
                return now, decision, effects
        self._put_aside(asked, error)
        return None

    def _put_aside(self, asked: Asked, error: BaseException) -> None:
        """This command fails whenever it is decided on: park it and refuse whoever asked."""
        about = fault(error, doing=type(asked.command).__name__)
        self._system.park(self._core, about, asked.cause, asked.command)
        if isinstance(asked.command, Recovered):
            self._unrecovered = asked
            self._stuck.failed(self._clock.now().monotonic)
            self._wake_at(self._stuck.waits_until(self._clock.now().monotonic) or 0.0)
        elif asked.reply is not None:
            asked.reply.fail(Refused(refusals.failed_twice(self._core.address, error)))
        self._fumbled += 1
        if self._fumbled >= _FUMBLES and self._is_seen_to_blame(asked.command):
            self._rebuild_due = True

    def _is_seen_to_blame(self, command: Command) -> bool:
        """Whether a fresh volatile state would do: deciding is pure, so that can be tried."""
        initial_volatile = self._core.initial_volatile()
        try:
            self._core.decide(self._state, command, self._clock.now(), initial_volatile)
        except BaseException:  # noqa: BLE001 - no: it is the command, or the code
            return False
        return True

    def _finish(
        self,
        now: Moment,
        effects: Sequence[tuple[Effect, str]] = (),
        answer: Callable[[], None] | None = None,
        asked: Asked | None = None,
        before: Any = None,
    ) -> None:
        """Carry out the effects, settle what follows, and only then answer.

        Whoever has his answer may at once ask another actor, which must have been told by then what the
        answer says: a model that was pulled successfully is not "not here" to the scheduler.

        `before` is the volatile state to go back to should nothing follow from what was `asked`.
        """
        try:
            if not self._perform(effects) and asked is not None and asked.reply is not None:
                # Not a refusal: what was decided has happened. Others who wait for it are asked again.
                failed = f"{self._core.address} failed on this command and was rebuilt"
                asked.reply.fail(ActorStopped(f"{failed}; check what it did before you ask again"))
            elif answer is not None:
                self._owed.append(answer)
            culprit = self._go_on(now, is_suspect=before is not None)
            if culprit is not None and asked is not None and asked.reply is not None:
                self._take_back(asked, asked.reply, before, culprit)
                self._go_on(now)
        finally:
            # Whatever has failed: what is owed was decided and stored before.
            owed, self._owed = self._owed, []
            for give_it in owed:
                give_it()

    def _take(self, decision: Decision[Any], cause: str) -> list[tuple[Effect, str]]:
        """Persist and apply; return the effects. Raises NotWritten with nothing changed."""
        cause = decision.cause or cause
        state = self._state
        effects: list[tuple[Effect, str]] = []
        if decision.events:
            batch = self._system.prepare(self._core, self._versions, decision.events, cause)
            # Folded before the commit: an event that apply cannot take must never get into the journal,
            # where it would fail every start from now on.
            for one in batch.stored:
                state = self._core.apply(state, one)
                effects += [(effect, one.id) for effect in self._core.react(state, one)]
            try:
                self._system.commit(batch)
            except NotWritten:
                every = (*(effect for effect, _ in effects), *decision.effects)
                self._unsaid = [effect for effect in every if isinstance(effect, Answer)]
                raise
            self._versions = batch.versions
            cause = batch.stored[-1].id
        self._taken += 1
        self._state = state
        if decision.volatile is not None:
            self._volatile = decision.volatile
        for left_out in decision.faults:
            self._system.park(self._core, left_out, cause)
        return effects + [(effect, cause) for effect in decision.effects]

    def _perform(self, effects: Sequence[tuple[Effect, str]]) -> bool:
        """Carry out effects; False when one of them could not be begun."""
        whole = True
        for effect, cause in effects:
            try:
                if isinstance(effect, Tell):
                    self._system.send(effect, effect.cause or cause)
                elif isinstance(effect, Answer):
                    self._owed.append(partial(self._waiting.answer, effect.key, effect.outcome))
                else:
                    self._effect_handler.perform(effect, cause)
            except JournalFailed:
                raise
            except BaseException as error:  # noqa: BLE001 - the effects after it are no part of it
                whole = False
                self._system.park(self._core, fault(error, doing=type(effect).__name__, about=cause), cause)
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
            self._tell_if_hopeless()
            return None
        if self._unrecovered is not None:
            again, self._unrecovered = self._unrecovered, None
            self._handle(again)
            return None
        error: BaseException
        before = self._taken
        for _ in range(2):
            try:
                wake_at = self._settle(now)
            except JournalFailed:
                raise
            except BaseException as problem:  # noqa: BLE001 - whatever it is, commands are decided on still
                error = problem
                self._is_restless = isinstance(error, _Restless)
                if self._is_restless:
                    break
            else:
                self._stuck.succeeded()
                self._is_restless = False
                self._wake_at(max(wake_at, now.monotonic + _SHORTEST_WAIT))
                return None
        if is_suspect and self._taken == before:
            return error
        self._system.park(self._core, fault(error, doing="settle"), "")
        self._stuck.failed(now.monotonic)
        self._wake_at(self._stuck.waits_until(now.monotonic) or 0.0)
        # The volatile state may be to blame, but not for ever.
        self._rebuild_due = self._rebuild_due or self._stuck.failures == _HOPELESS - 1
        self._tell_if_hopeless()
        return None

    def _settle(self, now: Moment) -> float:
        """Ask the core until it has no more events; the monotonic second of the next look."""
        wake_at = now.monotonic + TICK
        for _ in range(1 if self._is_restless else _SETTLE_ROUNDS):
            decision = self._core.settle(self._state, now, self._look())
            try:
                self._perform(self._take(decision, ""))
            except CannotEncode:
                raise
            except NotWritten as error:
                _log.warning("%s waits, its journal takes nothing: %s", self._core.address, error)
                self._settle_unstored(decision)
                return now.monotonic + RETRY_AFTER_NOT_WRITTEN
            if decision.wake_at is not None and decision.wake_at < wake_at:
                wake_at = decision.wake_at
            if not decision.events:
                return wake_at
        raise _Restless(f"{self._core.address} does not settle")

    def _take_back(self, asked: Asked, reply: Reply, before: Any, error: BaseException) -> None:
        """Nothing can follow from what this command has changed, so it changes nothing and is refused."""
        self._volatile = before
        self._owed = []
        self._waiting.remove(reply)
        about = fault(error, doing=type(asked.command).__name__)
        self._system.park(self._core, about, asked.cause, asked.command)
        reply.fail(Refused(refusals.failed_twice(self._core.address, error)))

    def _tell_if_hopeless(self) -> None:
        """While nothing follows from anything, nobody waits for it without an end."""
        for one in self._waiting.take() if self._stuck.failures >= _HOPELESS else ():
            one.reply.fail(Refused(refusals.stuck(self._core.address)))
            # It may get on again by itself, and must not do then what nobody waits for any more.
            undo = one.asked.command.withdrawn()
            if undo is not None:
                self._put(Asked(command=undo, cause=one.asked.cause))

    def _settle_unstored(self, decision: Decision[Any]) -> None:
        """Do what needs no event: those who wait hear that nothing can be stored, ready engines serve on."""
        if decision.if_not_stored is not None:
            if decision.if_not_stored.events:
                raise ValueError(f"{self._core.address} offers events in place of events")
            self._perform(self._take(decision.if_not_stored, ""))

    def _look(self) -> Any:
        if self._observe is None:
            return self._volatile
        try:
            return self._observe(self._volatile)
        except Exception as error:  # noqa: BLE001 - what it saw before is better than to see nothing
            self._system.park(self._core, fault(error, doing="look at what others own"), "")
            return self._volatile

    def _wake_at(self, monotonic: float) -> None:
        # A timer that fires too early costs one look at the state; to set one on each message costs more.
        if self._timer is not None:
            if self._timer_at <= monotonic:
                return
            self._timer.cancel()
        self._timer_number += 1
        self._timer_at = monotonic
        wake = _Wake(self._timer_number)
        self._timer = self._clock.call_at(monotonic, lambda: self._put(wake))

    def _put(self, message: Asked | _Wake) -> None:
        self._system.sent()
        self.actor_inbox.put(Envelope(message))

    # no answer

    def _gone(self) -> KernelError:
        if self._system.failure is not None:
            error = SystemFailed(f"the system has stopped: {in_one_line(self._system.failure)}")
            error.__cause__ = self._system.failure
            return error
        return ActorStopped(f"{self._core.address} has stopped")

    def _refuse(self, asked: Asked | None) -> None:
        if asked is not None and asked.reply is not None:
            asked.reply.fail(self._gone())

    def _refuse_envelope(self, envelope: Any) -> None:
        message = envelope.message
        if isinstance(message, Asked):
            self._refuse(message)
        if not isinstance(message, _ActorStop):
            self._system.handled()

    # trouble

    def _not_written(self, asked: Asked, error: NotWritten, decision: Decision[Any]) -> bool:
        """Refuse whoever asked, or keep a report for later; False when it never can be stored."""
        if asked.reply is not None:
            asked.reply.fail(Refused(refusals.not_taken(error)))
            return True
        if isinstance(error, CannotEncode) or (not isinstance(error, JournalFull) and asked.tries >= _TRIES):
            return False
        # A report tells what has happened; it must not be lost because the disk is full for a while. But
        # whoever waits for it must not wait for space.
        _log.warning("%s: will be handled again, the journal takes nothing: %s", self._core.address, error)
        again = msgspec.structs.replace(asked, tries=asked.tries + 1)
        self._clock.call_at(self._clock.now().monotonic + RETRY_AFTER_NOT_WRITTEN, lambda: self._put(again))
        if decision.if_not_stored is not None:
            self._settle_unstored(decision)
        for answer in self._unsaid:
            refused = isinstance(answer.outcome, Refusal)
            self._waiting.answer(answer.key, answer.outcome if refused else refusals.unrecorded(error))
        return True

    def _give_up(self, asked: Asked | None, error: BaseException) -> None:
        self._system.failed(error)
        self._refuse(asked)

    def _rebuild(self) -> None:
        """Begin with a fresh volatile state and look at the world; whoever waits goes on waiting if possible.

        The durable state stays: it is an immutable value that was taken over only when it was stored, so no
        exception can have harmed it, and a rebuild needs neither the disk nor a descriptor.
        """
        if not self._rebuilds.allows(self._clock.now().monotonic):
            return
        self._rebuild_due = False
        _log.warning("%s is rebuilt", self._core.address)
        waiters = self._waiting.take()
        self._volatile = self._core.initial_volatile()
        self._unrecovered = None
        self._stuck.try_now()
        self._handle(Asked(command=Recovered(), cause=""))
        for one in waiters:
            if one.repeatable:
                self._receive(one.asked)
            else:
                one.reply.fail(ActorStopped(f"{self._core.address} was rebuilt; ask again"))
