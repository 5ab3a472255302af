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
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import pykka
from greenroom.actors.journal.port import JournalFailed, NotWritten
from greenroom.actors.kernel.clock import Clock, Moment, Timer
from greenroom.actors.kernel.core import (
    Answer,
    Command,
    Core,
    Decision,
    Effect,
    Event,
    Hands,
    Later,
    Recovered,
    Stored,
    Tell,
)
from greenroom.actors.kernel.errors import ActorStopped, AskExpired, Refusal, Refused, SystemFailed
from greenroom.actors.kernel.inbox import Inbox
from greenroom.actors.kernel.reply import Reply
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

_log = logging.getLogger(__name__)

TICK = 5.0
"""Seconds after which a core is asked again what follows, whether or not it said so."""
RETRY_AFTER_NOT_WRITTEN = 1.0
"""Seconds after which a report that could not be stored is handled again."""
_SETTLE_ROUNDS = 200
_REBUILDS = 5
_REBUILD_WINDOW = 30.0


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A command with where its answer goes; without `reply` it was told, not asked."""

    command: Command
    cause: str
    reply: Reply | None = None
    deadline: float | None = None
    """Monotonic second after which nobody waits any more."""


class _Wake(msgspec.Struct, frozen=True):
    """Time has passed."""


class Surroundings(Protocol):
    """What a shell needs of its system."""

    clock: Clock

    def record(
        self, core: Core[Any, Any], versions: dict[str, int], events: Sequence[Event], cause: str
    ) -> list[Stored[Event]]:
        """Store the events as one batch and return them as stored."""
        ...

    def replay(self, core: Core[Any, Any]) -> tuple[Any, dict[str, int]]:
        """The durable state and the stream versions, from the journal."""
        ...

    def send(self, effect: Tell, cause: str) -> None:
        """Deliver a command to another actor."""
        ...

    def park(self, core: Core[Any, Any], command: Command, trace: str) -> None:
        """Store that this command fails whenever it is handled."""
        ...

    def failed(self, error: BaseException) -> None:
        """Stop the system: going on could falsify the journal."""
        ...

    def sent(self) -> None:
        """One message is under way."""
        ...

    def handled(self) -> None:
        """One message is done."""
        ...


class Shell(pykka.ThreadingActor):
    """Runs one core: decide, persist, apply, effects, reply, then settle."""

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
        self.stopped = Reply()
        self._core = core
        self._hands = hands
        self._system = system
        self._clock = system.clock
        self._state = state
        self._versions = versions
        self._seen = core.unseen()
        self._sense = sense
        self._parked: dict[str, list[Asked]] = {}
        self._wake: Timer | None = None
        self._rebuilds: deque[float] = deque()

    @staticmethod
    def _create_actor_inbox() -> Inbox:
        return Inbox()

    @staticmethod
    def _create_future() -> Reply:
        return Reply()

    def begin(self) -> None:
        """Start the thread. Unlike Pykka's `start`, this leaves the process-wide registry alone."""
        self._start_actor_loop()

    @property
    def state(self) -> Any:
        """The durable state; an immutable value, so reading it from any thread is safe."""
        return self._state

    # Pykka's hooks

    def _actor_loop_setup(self) -> None:
        try:
            self._handle(Asked(command=Recovered(), cause=""))
        except BaseException as error:  # noqa: BLE001 - whatever it is, whoever starts us must hear of it
            self.actor_stopped.set()
            self.started.fail(error)
            return
        self.started.set(None)

    def _actor_loop_teardown(self) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self.actor_inbox.close(self._refuse_envelope)
        self._fail_parked(ActorStopped(f"{self._core.address} has stopped"))
        self.stopped.set(None)

    def _handle_receive(self, message: Any) -> Any:
        if isinstance(message, _ActorStop):
            return self._stop()
        try:
            if isinstance(message, _Wake):
                self._settle(self._clock.now())
            elif isinstance(message, Asked):
                self._receive(message)
        except BaseException as error:  # noqa: BLE001 - Pykka would stop every actor of the process
            self._survive(message if isinstance(message, Asked) else None, error)
        finally:
            self._system.handled()
        return None

    # one message

    def _receive(self, asked: Asked) -> None:
        expired = asked.deadline is not None and self._clock.now().monotonic >= asked.deadline
        if expired and asked.reply is not None:
            asked.reply.fail(AskExpired(f"{self._core.address} was too busy to answer in time"))
            return
        self._handle(asked)

    def _handle(self, asked: Asked) -> None:
        now = self._clock.now()
        decision = self._core.decide(self._state, asked.command, now, self._look())
        try:
            self._carry_out(decision, asked.cause)
        except NotWritten as error:
            self._not_written(asked, error)
            return
        self._answer(asked, decision.reply)
        self._settle(now)

    def _carry_out(self, decision: Decision[Any], cause: str) -> None:
        """Persist, apply, effects, in this order. Raises NotWritten with nothing changed."""
        cause = decision.cause or cause
        stored = (
            self._system.record(self._core, self._versions, decision.events, cause) if decision.events else []
        )
        effects: list[tuple[Effect, str]] = []
        for one in stored:
            self._state = self._core.apply(self._state, one)
            effects += [(effect, one.id) for effect in self._core.react(self._state, one)]
        if decision.seen is not None:
            self._seen = decision.seen
        last = stored[-1].id if stored else cause
        effects += [(effect, last) for effect in decision.effects]
        for effect, why in effects:
            if isinstance(effect, Tell):
                self._system.send(effect, why)
            elif isinstance(effect, Answer):
                self._answer_parked(effect)
            else:
                self._hands.perform(effect, why)

    def _settle(self, now: Moment) -> None:
        wake_at = now.monotonic + TICK
        for _ in range(_SETTLE_ROUNDS):
            decision = self._core.settle(self._state, now, self._look())
            try:
                self._carry_out(decision, "")
            except NotWritten as error:
                _log.warning("%s waits, its journal takes nothing: %s", self._core.address, error)
                wake_at = now.monotonic + RETRY_AFTER_NOT_WRITTEN
                break
            if decision.wake_at is not None:
                wake_at = min(wake_at, decision.wake_at)
            if not decision.events:
                break
        else:
            raise RuntimeError(f"{self._core.address} does not come to rest")
        self._wake_at(wake_at)

    def _look(self) -> Any:
        return self._seen if self._sense is None else self._sense(self._seen)

    def _wake_at(self, monotonic: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self._clock.call_at(monotonic, self._woken)

    def _woken(self) -> None:
        self._system.sent()
        self.actor_inbox.put(Envelope(_Wake()))

    # answers

    def _answer(self, asked: Asked, outcome: Any) -> None:
        if asked.reply is None:
            return
        if isinstance(outcome, Later):
            self._parked.setdefault(outcome.key, []).append(asked)
            if asked.deadline is not None:
                reply = asked.reply
                self._clock.call_at(
                    asked.deadline,
                    lambda: reply.fail(AskExpired(f"{self._core.address} did not answer in time")),
                )
            return
        _give(asked.reply, outcome)

    def _answer_parked(self, answer: Answer) -> None:
        for asked in self._parked.pop(answer.key, []):
            assert asked.reply is not None
            _give(asked.reply, answer.outcome)

    def _fail_parked(self, error: Exception) -> None:
        parked, self._parked = self._parked, {}
        for waiting in parked.values():
            for asked in waiting:
                assert asked.reply is not None
                asked.reply.fail(error)

    def _refuse_envelope(self, envelope: Any) -> None:
        message = envelope.message
        if isinstance(message, Asked) and message.reply is not None:
            message.reply.fail(ActorStopped(f"{self._core.address} has stopped"))
        if not isinstance(message, _ActorStop):
            self._system.handled()
        elif envelope.reply_to is not None:
            envelope.reply_to.set(None)

    # trouble

    def _not_written(self, asked: Asked, error: NotWritten) -> None:
        if asked.reply is not None:
            refusal = Refusal(
                code="journal_full",
                message=f"The journal cannot take this now: {error}.",
                advice="Make room on the disk and try again.",
                status=507,
            )
            asked.reply.fail(Refused(refusal))
            return
        # A report tells what has happened; it must not be lost because the disk is full for a while.
        _log.warning("%s: will be handled again, the journal takes nothing: %s", self._core.address, error)
        again = Envelope(asked)
        self._clock.call_at(
            self._clock.now().monotonic + RETRY_AFTER_NOT_WRITTEN, lambda: self._put_again(again)
        )

    def _put_again(self, envelope: Any) -> None:
        self._system.sent()
        self.actor_inbox.put(envelope)

    def _survive(self, asked: Asked | None, error: BaseException) -> None:
        """A handler raised: rebuild from the journal, try the command once more, then park it."""
        if isinstance(error, JournalFailed | SystemFailed):
            self._system.failed(error)
            if asked is not None and asked.reply is not None:
                asked.reply.fail(error)
            return
        _log.error("%s failed and is rebuilt", self._core.address, exc_info=error)
        try:
            self._rebuild()
            if asked is None:
                return
            try:
                self._handle(asked)
            except (JournalFailed, SystemFailed):
                raise
            except BaseException as again:  # noqa: BLE001 - a command that kills twice is parked
                self._rebuild()
                trace = "".join(traceback.format_exception(again))
                self._system.park(self._core, asked.command, trace)
                if asked.reply is not None:
                    asked.reply.fail(
                        Refused(
                            Refusal(
                                code="internal_error",
                                message=f"{self._core.address} failed on this twice ({again}).",
                                advice="`greenroom log --kind command_parked` shows where.",
                                status=500,
                            )
                        )
                    )
        except BaseException as fatal:  # noqa: BLE001 - it cannot be rebuilt: the system must not go on
            if asked is not None and asked.reply is not None:
                asked.reply.fail(ActorStopped(f"{self._core.address} could not be rebuilt: {fatal}"))
            self._system.failed(fatal)

    def _rebuild(self) -> None:
        now = self._clock.now().monotonic
        self._rebuilds.append(now)
        while self._rebuilds and self._rebuilds[0] < now - _REBUILD_WINDOW:
            self._rebuilds.popleft()
        if len(self._rebuilds) > _REBUILDS:
            raise SystemFailed(
                f"{self._core.address} was rebuilt {_REBUILDS} times in {_REBUILD_WINDOW:.0f} seconds"
            )
        self._fail_parked(ActorStopped(f"{self._core.address} was rebuilt; ask again"))
        self._state, self._versions = self._system.replay(self._core)
        self._seen = self._core.unseen()
        self._handle(Asked(command=Recovered(), cause=""))


def _give(reply: Reply, outcome: Any) -> None:
    if isinstance(outcome, Refusal):
        reply.fail(Refused(outcome))
    else:
        reply.set(outcome)
