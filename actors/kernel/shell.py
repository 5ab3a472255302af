"""The thin shell around a pure core: one Pykka actor, and nothing Pykka does that a host would regret.

What stock Pykka would do, and what we do instead, each with its test:

* an ask that races with stop is never answered → our `Inbox` can be closed;
* `SystemExit` in a handler stops every Pykka actor of the process → it is an ordinary error here;
* a host's `ActorRegistry.stop_all()` stops us → we are never in the registry;
* a failing start is silent → `started` is a reply that whoever starts the system waits for;
* a handler that raises on a tell kills the actor → we rebuild it from the journal, at the same address.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import pykka
from greenroom.actors.journal.port import JournalFailed, JournalFull, NotWritten
from greenroom.actors.kernel.clock import Moment, Timer
from greenroom.actors.kernel.codec import CannotEncode
from greenroom.actors.kernel.core import (
    Answer,
    Command,
    Core,
    Decision,
    Effect,
    Hands,
    Later,
    Recovered,
    Tell,
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
from greenroom.actors.kernel.supervision import REBUILD_WINDOW, REBUILDS, Intensity, in_one_line
from greenroom.actors.kernel.surroundings import Surroundings
from greenroom.actors.kernel.waiting import Waiting, give
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

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


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A command with where its answer goes; without `reply` it was told, not asked."""

    command: Command
    cause: str
    reply: Reply | None = None
    deadline: float | None = None
    """Monotonic second after which nobody waits any more."""
    tries: int = 0
    """How often the journal has refused what it made."""


class _Wake(msgspec.Struct, frozen=True):
    """Time has passed. `number` tells the timer that is set from one that fired as it was cancelled."""

    number: int


class Shell(pykka.ThreadingActor):
    """Runs one core: decide, persist, apply, effects, settle, then reply."""

    use_daemon_thread = True

    actor_inbox: Inbox

    def __init__(
        self,
        core: Core[Any, Any],
        hands: Hands,
        system: Surroundings,
        state: Any,
        versions: dict[str, int],
        sense: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.started = Reply()
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None
        """Set once it runs."""
        self._core = core
        self._hands = hands
        self._system = system
        self._clock = system.clock
        self._state = state
        self._versions = versions
        self._seen = core.unseen()
        self._sense = sense
        self._waiting = Waiting()
        self._owed: list[Callable[[], None]] = []
        """Answers that are given once what follows from the state has been settled."""
        self._unsaid: list[Answer] = []
        """Answers of the decision that could not be stored."""
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._timer_number = 0
        self._rebuilds = Intensity()
        self._second_tries = Intensity()
        self._decided = False

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
        except BaseException as error:  # noqa: BLE001 - whatever it is, whoever starts us must hear of it
            self.actor_stopped.set()
            failure = StartFailed(f"{self._core.address} could not start: {in_one_line(error)}")
            failure.__cause__ = error
            self.started.fail(failure)
            return
        self.started.set(None)

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
        except JournalFailed as error:
            self._give_up(asked, error)
        except BaseException as error:  # noqa: BLE001 - Pykka would stop every actor of the process
            self._survive(asked, error)
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
        now = self._clock.now()
        self._decided = False
        decision = self._core.decide(self._state, asked.command, now, self._look())
        try:
            effects = self._take(decision, asked.cause)
        except NotWritten as error:
            self._not_written(asked, error, decision)
            return
        later = decision.reply if isinstance(decision.reply, Later) else None
        if later is not None and asked.reply is not None:
            # Before the effects, since one of them may be the very answer.
            self._waiting.add(later.key, asked.reply)
        reply = asked.reply if later is None else None
        self._finish(now, effects, partial(give, reply, decision.reply) if reply is not None else None)

    def _finish(
        self,
        now: Moment,
        effects: Sequence[tuple[Effect, str]] = (),
        answer: Callable[[], None] | None = None,
    ) -> None:
        """Carry out the effects, settle what follows, and only then answer.

        Whoever has his answer may at once ask another actor, which must have been told by then what the
        answer says: a model that was pulled successfully is not "not here" to the scheduler.
        """
        try:
            self._perform(effects)
            if answer is not None:
                self._owed.append(answer)
            self._settle(now)
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
        self._decided = True
        self._state = state
        if decision.seen is not None:
            self._seen = decision.seen
        return effects + [(effect, cause) for effect in decision.effects]

    def _perform(self, effects: Sequence[tuple[Effect, str]]) -> None:
        for effect, cause in effects:
            if isinstance(effect, Tell):
                self._system.send(effect, effect.cause or cause)
            elif isinstance(effect, Answer):
                self._owed.append(partial(self._waiting.answer, effect.key, effect.outcome))
            else:
                self._hands.perform(effect, cause)

    def _settle(self, now: Moment) -> None:
        wake_at = now.monotonic + TICK
        for _ in range(_SETTLE_ROUNDS):
            decision = self._core.settle(self._state, now, self._look())
            try:
                self._perform(self._take(decision, ""))
            except CannotEncode:
                raise
            except NotWritten as error:
                _log.warning("%s waits, its journal takes nothing: %s", self._core.address, error)
                self._settle_unstored(decision)
                wake_at = now.monotonic + RETRY_AFTER_NOT_WRITTEN
                break
            if decision.wake_at is not None:
                wake_at = min(wake_at, decision.wake_at)
            if not decision.events:
                break
        else:
            raise RuntimeError(f"{self._core.address} does not come to rest")
        self._wake_at(max(wake_at, now.monotonic + _SHORTEST_WAIT))

    def _settle_unstored(self, decision: Decision[Any]) -> None:
        """Do what needs no event: those who wait hear that nothing can be stored, ready engines serve on."""
        if decision.otherwise is not None:
            if decision.otherwise.events:
                raise ValueError(f"{self._core.address} offers events in place of events")
            self._perform(self._take(decision.otherwise, ""))

    def _look(self) -> Any:
        return self._seen if self._sense is None else self._sense(self._seen)

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

    def _not_written(self, asked: Asked, error: NotWritten, decision: Decision[Any]) -> None:
        if asked.reply is not None:
            asked.reply.fail(Refused(_refusal(error)))
            return
        if isinstance(error, CannotEncode) or (not isinstance(error, JournalFull) and asked.tries >= _TRIES):
            raise error
        # A report tells what has happened; it must not be lost because the disk is full for a while. But
        # whoever waits for it must not wait for space.
        _log.warning("%s: will be handled again, the journal takes nothing: %s", self._core.address, error)
        again = msgspec.structs.replace(asked, tries=asked.tries + 1)
        self._clock.call_at(self._clock.now().monotonic + RETRY_AFTER_NOT_WRITTEN, lambda: self._put(again))
        if decision.otherwise is not None:
            self._settle_unstored(decision)
        for answer in self._unsaid:
            refused = isinstance(answer.outcome, Refusal)
            self._waiting.answer(answer.key, answer.outcome if refused else _unrecorded(error))

    def _survive(self, asked: Asked | None, error: BaseException) -> None:
        """A handler raised: rebuild the actor; if nothing was decided yet, try once more, then park.

        Once a decision has been taken its command is never repeated: its events are stored, and what they
        make necessary is found by looking, which is what `Recovered` is for.
        """
        _log.error("%s failed", self._core.address, exc_info=error)
        try:
            if asked is not None and not self._decided:
                self._try_again(asked, error)
            else:
                self._rebuild_after(asked)
        except BaseException as fatal:  # noqa: BLE001 - it cannot be rebuilt: the system must not go on
            self._give_up(asked, fatal)

    def _rebuild_after(self, asked: Asked | None) -> None:
        self._rebuild()
        if asked is not None and asked.reply is not None:
            # Not a refusal: what was decided has happened.
            failed = f"{self._core.address} failed on this and was rebuilt"
            asked.reply.fail(ActorStopped(f"{failed}; see what came of it before you ask again"))

    def _give_up(self, asked: Asked | None, error: BaseException) -> None:
        self._system.failed(error)
        self._refuse(asked)

    def _try_again(self, asked: Asked, error: BaseException) -> None:
        # Deciding is pure, so nothing has happened yet. Whoever sends what fails again and again gets no
        # more rebuilds than the limit allows, and cannot bring the system down: these are counted apart.
        if self._second_tries.allows(self._clock.now().monotonic):
            self._recover()
            try:
                self._handle(asked)
            except (JournalFailed, SystemFailed):
                raise
            except BaseException as again:  # noqa: BLE001 - whatever it is, it is parked
                if self._decided:
                    self._rebuild_after(asked)
                    return
                error = again
            else:
                return
        self._system.park(self._core, asked.command, asked.cause, error)
        if asked.reply is not None:
            refusal = Refusal(
                code="internal_error",
                message=f"{self._core.address} failed on this twice ({in_one_line(error)}).",
                advice="`greenroom log --kind command_parked` shows where.",
                status=500,
            )
            asked.reply.fail(Refused(refusal))

    def _rebuild(self) -> None:
        """Raises SystemFailed when it happens too often."""
        if not self._rebuilds.allows(self._clock.now().monotonic):
            raise SystemFailed(
                f"{self._core.address} fails still after {REBUILDS} rebuilds in {REBUILD_WINDOW:.0f} seconds"
            )
        self._recover()

    def _recover(self) -> None:
        self._waiting.fail(lambda: ActorStopped(f"{self._core.address} was rebuilt; ask again"))
        self._state, self._versions = self._system.replay(self._core)
        self._seen = self._core.unseen()
        try:
            self._handle(Asked(command=Recovered(), cause=""))
        except (JournalFailed, SystemFailed):
            raise
        except BaseException as error:  # noqa: BLE001 - another look may go better, within the limit
            _log.error("%s failed as it was rebuilt", self._core.address, exc_info=error)
            self._rebuild()


def _unrecorded(error: NotWritten) -> Refusal:
    """What is told to whoever waits for something that has been done and cannot be recorded."""
    return Refusal(
        code="journal_full" if isinstance(error, JournalFull) else "journal_refused",
        message=f"This has been done, but the journal cannot take it: {error}.",
        advice="It is recorded by itself when there is room; until then it may not show.",
        status=507,
    )


def _refusal(error: NotWritten) -> Refusal:
    code, advice = "journal_refused", "Try again; if it stays so, `greenroom journal verify` says more."
    if isinstance(error, JournalFull):
        code, advice = "journal_full", "Engines that are ready go on serving meanwhile."
    elif isinstance(error, CannotEncode):
        code, advice = "not_storable", "This is a bug; please report it."
    return Refusal(code=code, message=f"The journal cannot take this: {error}.", advice=advice, status=507)
