"""What a host needs to test actors of its own, and what our own tests use.

A pure core is tested without threads, clock or journal:

    case = given(Counter(), Counted(by=2))
    case.when(Count(by=3)).then(Counted(by=3))
    assert case.state.total == 5

Each event there is encoded, decoded and compared, and each of the core's functions is called twice and
must answer the same and leave its arguments alone.

Several actors together are tested in a `ManualSystem`: the real system without its threads, so that the test
decides who handles a message when. `ManualClock`, `RecordingEffectHandler` and, for faults of the disk,
`FaultyJournal` serve there and in an `ActorSystem`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, Self, TypeVar, cast

from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import Entry, Journal, JournalFailed, NotWritten, Record
from greenroom.actors.kernel.actor import Actor
from greenroom.actors.kernel.answers import Asked
from greenroom.actors.kernel.clock import ManualClock, Moment
from greenroom.actors.kernel.core import (
    Address,
    Answer,
    Command,
    Core,
    Decision,
    Effect,
    Event,
    Fault,
    Stored,
    Tell,
)
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.kernel.event_store import Store
from greenroom.actors.kernel.executor import Executor, Wake
from greenroom.actors.kernel.steps import Prepared, Restless, Steps
from greenroom.actors.kernel.system import ActorSystem

__all__ = ["Case", "FaultyJournal", "ManualClock", "ManualSystem", "RecordingEffectHandler", "given"]

S = TypeVar("S")
V = TypeVar("V")
T = TypeVar("T", bound=Effect)


def given(
    core: Core[S, V], *events: Event, volatile: V | None = None, now: Moment | None = None
) -> Case[S, V]:
    """A core to which these events have happened, with this volatile state; `now` is when all happens."""
    return Case(core, volatile=volatile, now=now).given(*events)


class Case(Generic[S, V]):
    """One core and its life so far. Every step returns the case, so steps can be chained.

    `events` and `effects` are those since the last `when`, `wake` or `advance`.
    """

    def __init__(self, core: Core[S, V], *, volatile: V | None = None, now: Moment | None = None) -> None:
        self.core = core
        self.clock = ManualClock() if now is None else ManualClock(now.wall, now.monotonic)
        store = Store(MemoryJournal(), self.clock)
        store.codec.register(core.event_types)
        self._steps: Steps[S, V] = Steps(cast("Core[S, V]", _Checked(core)), store, core.initial())
        if volatile is not None:
            self.volatile = volatile
        self.history: list[Stored[Event]] = []
        """Every event of this life, the given ones included."""
        self.events: list[Event] = []
        self.effects: list[Effect] = []
        self.decision: Decision[V] = Decision()
        """What `when` or `settle` decided last."""
        self.wake_at: float | None = None
        """The earliest monotonic second the last `rest` or `settle` asked to be woken at."""
        self.faults: list[Fault] = []
        """What the core kept to itself of exceptions; they fail the step unless `faults_allowed`."""
        self.faults_allowed = False
        self._unchecked: list[Event] = []

    # steps

    def given(self, *events: Event, cause: str = "") -> Self:
        """Let these events have happened already: they are applied, and nothing reacts to them."""
        for event in events:
            self._commit(self._prepare(Decision(events=(event,)), cause))
        return self

    def when(
        self, command: Command[Any], *, volatile: V | None = None, now: Moment | None = None, cause: str = ""
    ) -> Self:
        """Let the core decide on a command; its events are applied and reacted to. Does not settle."""
        if volatile is not None:
            self.volatile = volatile
        if now is not None:
            self.clock.set(now)
        self._begin()
        self.carry_out(self._steps.core.decide(self.state, command, self.now, self.look()), cause)
        return self

    def settle(self) -> Self:
        """Let the core settle once, as an actor does after a command."""
        self._follow(next(self._steps.following(lambda: self.now, self.look)))
        return self

    def rest(self) -> Self:
        """Settle until nothing more follows, as an actor does after every command."""
        earliest: float | None = None
        try:
            for decision in self._steps.following(lambda: self.now, self.look):
                self._follow(decision)
                if decision.wake_at is not None:
                    earliest = decision.wake_at if earliest is None else min(earliest, decision.wake_at)
        except Restless as error:
            raise AssertionError(f"{error}: {self.events[-4:]}") from error
        self.wake_at = earliest
        return self

    def advance(self, seconds: float) -> Self:
        """Let time pass, and nothing else: follow it with `rest` to see what comes of it."""
        self._begin()
        self.clock.advance(seconds)
        return self

    def wake(self) -> Self:
        """Let time pass until the core asked to be woken, then let it come to rest."""
        if self.wake_at is None:
            raise AssertionError(f"{self.core.address} did not ask to be woken")
        return self.advance(max(0.0, self.wake_at - self.now.monotonic)).rest()

    def rebuild(self) -> Self:
        """Lose the volatile state, replay the events and compare. `Recovered` comes next."""
        state = self.core.initial()
        for stored in self.history:
            state = self.core.apply(state, stored)
        _same(self.state, state, "the replayed state is not the live one")
        self.volatile = self.core.initial_volatile()
        self._begin()
        return self

    # looking

    @property
    def state(self) -> S:
        return self._steps.state

    @property
    def volatile(self) -> V:
        return self._steps.volatile

    @volatile.setter
    def volatile(self, volatile: V) -> None:
        self._steps.volatile = volatile

    def look(self) -> V:
        """The volatile state that the next decision is based on; to be overridden by what observes."""
        return self.volatile

    def then(self, *expected: Event | type[Event]) -> Self:
        """Exactly these events have happened since the last step or `then`; a type stands for any of it."""
        found, self._unchecked = self._unchecked, []
        matches = len(found) == len(expected) and all(
            type(event) is want if isinstance(want, type) else event == want
            for event, want in zip(found, expected, strict=True)
        )
        if not matches:
            raise AssertionError(
                f"expected {_lines(expected)}\nbut got  {_lines(found)}\n(reply: {self.reply!r})"
            )
        return self

    @property
    def now(self) -> Moment:
        return self.clock.now()

    @property
    def reply(self) -> Any:
        """What the last decision answered: a reply, a `Refusal`, a `Later` or None."""
        return self.decision.reply

    @property
    def refusal(self) -> Refusal:
        """The refusal the last decision answered."""
        reply = self.decision.reply
        assert isinstance(reply, Refusal), f"not refused; it replied {reply!r}"
        return reply

    @property
    def answers(self) -> dict[str, Any]:
        """What those who wait were answered, by key."""
        return {effect.key: effect.outcome for effect in self.effects if isinstance(effect, Answer)}

    def told(self, to: Address | str) -> list[Command[Any]]:
        """The commands that were sent to an actor."""
        return [
            effect.command
            for effect in self.effects
            if isinstance(effect, Tell) and effect.address == Address(str(to))
        ]

    def of(self, kind: type[T]) -> list[T]:
        """The effects of this type, the oldest first."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    # inside

    def _begin(self) -> None:
        # Events that no `then` looked at are fine in a long story; they must not leak into the next step.
        self._unchecked = []
        self.events = []
        self.effects = []

    def _follow(self, decision: Decision[V]) -> None:
        if decision.reply is not None:
            raise AssertionError(f"settle must not reply, but replied {decision.reply!r}")
        self.wake_at = decision.wake_at
        self.carry_out(decision, "")

    def carry_out(self, decision: Decision[V], cause: str) -> None:
        """Store a decision's events and collect its effects; a case that performs them overrides this."""
        self.decision = decision
        self.faults += decision.faults
        if decision.faults and not self.faults_allowed:
            raise AssertionError("".join(one.traceback for one in decision.faults))
        prepared = self._prepare(decision, cause)
        self._commit(prepared)
        for effect, _ in prepared.effects:
            assert isinstance(effect, Effect), f"{effect!r} is not an effect"
            self.effects.append(effect)
        self.events += decision.events
        self._unchecked += decision.events

    def _prepare(self, decision: Decision[V], cause: str) -> Prepared:
        try:
            return self._steps.prepare(decision, cause)
        except ValueError as error:
            raise AssertionError(str(error)) from error

    def _commit(self, prepared: Prepared) -> None:
        stored = prepared.batch.stored if prepared.batch is not None else ()
        for event, one in zip(prepared.decision.events, stored, strict=True):
            _same(event, one.event, "the event does not survive the journal")
        self._steps.commit(prepared)
        self.history += stored


class _Checked:
    """A core whose functions are called twice, to find those that are not pure."""

    def __init__(self, core: Core[Any, Any]) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:
        pure = name in ("decide", "apply", "react", "settle")
        return partial(self._twice, name) if pure else getattr(self._core, name)

    def _twice(self, name: str, state: Any, *more: Any) -> Any:
        function, before = getattr(self._core, name), copy.deepcopy(state)
        first, second = function(state, *more), function(state, *more)
        _same(first, second, f"{name} is not pure: the same arguments gave two answers")
        _same(before, state, f"{name} is not pure: it changed the state it was given")
        return first


class ManualSystem(ActorSystem):
    """An actor system without threads: its actors handle a message when the test says so.

    Everything else is the real thing, on a `ManualClock` and, unless one is given, a `MemoryJournal`. What an
    actor would survive, such as an exception in its core, fails the step unless `faults_allowed`.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        *,
        clock: ManualClock | None = None,
        faults_allowed: bool = False,
        **options: Any,
    ) -> None:
        """`options` are those of `ActorSystem`."""
        self._time = clock or ManualClock()
        super().__init__(journal or MemoryJournal(), clock=self._time, **options)
        self.store = self._noting = _NotingStore(self.journal, self._time, self.store.redact)
        self.faults_allowed = faults_allowed
        self._is_stepping = False

    def mail(self, of: Address | str) -> list[Command[Any] | Wake]:
        """What waits in the mailbox of an actor; a `Wake` is its timer."""
        return [
            one.command if isinstance(one, Asked) else one
            for one in self._manual(of).actor_inbox.messages()
            if isinstance(one, Asked | Wake)
        ]

    def postponed(self, of: Address | str) -> list[Command[Any]]:
        """The reports that an actor will handle again once the journal takes something."""
        return [one.command for one in self._manual(of).executor.postponed]

    def step(self, of: Address | str) -> None:
        """Let an actor handle the next message in its mailbox."""
        self._step(self._manual(of).step)

    def rebuild(self, of: Address | str) -> None:
        """Rebuild an actor, as after a failed effect."""
        self._step(self._manual(of).executor.rebuild)

    def rest(self, timeout: float = 10.0) -> None:  # noqa: ARG002 - nothing is waited for
        """Let all actors handle their messages in turn until none waits."""
        if self._is_stepping:
            return
        for _ in range(10_000):
            busy = [one for one in self._actors if not self._manual(one).actor_inbox.empty()]
            if not busy:
                return
            for one in busy:
                self.step(one)
        raise AssertionError("the actors send each other messages endlessly")

    def pass_time(self, seconds: float) -> None:
        """Let time pass from timer to timer, with all messages handled in between."""
        target = self._time.now().monotonic + seconds
        self.rest()
        while self._time.now().monotonic < target:
            self._time.advance_to(min(max(self._time.due, self._time.now().monotonic), target))
            self.rest()

    def crash(self) -> None:
        """End as a killed process does: what waits is lost, and every ask fails."""
        for actor in self._actors.values():
            actor.on_stop()
        self._leases.drop()

    def _actor(self, executor: Executor) -> Actor:
        return _ManualActor(executor, self._count)

    def _manual(self, of: Address | str) -> _ManualActor:
        actor = self._actors[Address(str(of))]
        assert isinstance(actor, _ManualActor)
        return actor

    def _step(self, step: Callable[[], None]) -> None:
        self._is_stepping = True
        try:
            step()
        finally:
            self._is_stepping = False
        if self._noting.faults and not self.faults_allowed:
            raise AssertionError("".join(one.traceback for one in self._noting.faults))

    def _stop_actors(self) -> None:
        super()._stop_actors()
        self.rest()


class _NotingStore(Store):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.faults: list[Fault] = []

    def park(
        self, core: Core[Any, Any], about: Fault, cause: str, command: Command[Any] | None = None
    ) -> None:
        self.faults.append(about)
        super().park(core, about, cause, command)


class _ManualActor(Actor):
    def begin(self) -> None:
        self.take_first_look()

    def step(self) -> None:
        message = self.actor_inbox.get().message
        if isinstance(message, Asked | Wake):
            self.on_receive(message)
        else:
            self.on_stop()


class RecordingEffectHandler:
    """An effect handler that notes effects and may report at once, as the test says.

    `on` maps a kind of effect to what to do about it, typically a `system.tell` with the report.
    """

    def __init__(self, on: dict[type[Effect], Callable[[Any, str], None]] | None = None) -> None:
        self.performed: list[tuple[Effect, str]] = []
        """Each effect with its cause."""
        self.on = dict(on or {})
        self._changed = threading.Condition()

    @property
    def effects(self) -> list[Effect]:
        return [effect for effect, _ in self.performed]

    def of(self, kind: type[T]) -> list[T]:
        """The effects of this type, the oldest first."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def perform(self, effect: Effect, cause: str) -> None:
        with self._changed:
            self.performed.append((effect, cause))
            self._changed.notify_all()
        act = self.on.get(type(effect))
        if act is not None:
            act(effect, cause)

    def wait_for(self, kind: type[T], count: int = 1, timeout: float = 5.0) -> list[T]:
        """Wait until there have been `count` effects of a kind, and return them. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.of(kind)) >= count, timeout):
                raise TimeoutError(f"{len(self.of(kind))} of {count} {kind.__name__}; had {self.effects}")
            return self.of(kind)


class FaultyJournal:
    """A journal whose disk has the faults a test gives it. Everything else goes to the one inside."""

    def __init__(self, inside: Journal) -> None:
        self.inside = inside
        self.fault: NotWritten | JournalFailed | None = None
        """Raised by every `append` until it is taken away; `urgent` ones pass a NotWritten."""
        self.attempts: list[Sequence[Entry]] = []
        """Every batch, stored or not."""

    def append(self, batch: Sequence[Entry], *, urgent: bool = False) -> list[Record]:
        self.attempts.append(batch)
        if self.fault is not None and not (urgent and isinstance(self.fault, NotWritten)):
            raise self.fault
        return self.inside.append(batch, urgent=urgent)

    def read(self, *, after: int = 0, stream: str | None = None) -> Iterator[Record]:
        return self.inside.read(after=after, stream=stream)

    def close(self) -> None:
        self.inside.close()


def _same(first: Any, second: Any, otherwise: str) -> None:
    if first != second:
        raise AssertionError(f"{otherwise}:\n{first!r}\n{second!r}")


def _lines(events: Sequence[Any]) -> str:
    return "".join(f"\n  {event!r}" for event in events) or " nothing"
