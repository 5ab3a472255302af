"""What a host needs to test an actor of its own, and what our own tests use.

A pure core is tested without threads, clock or journal:

    case = given(Counter(), Counted(by=2))
    case.when(Count(by=3)).then(Counted(by=3))
    assert case.state.total == 5

Each event there is encoded, decoded and compared, and each of the core's functions is called twice and
must answer the same and leave its arguments alone. A core in an `ActorSystem` is tested with a
`ManualClock`, `RecordingEffectHandler` and, for faults of the disk, a `FaultyJournal`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar

from greenroom.actors.journal.port import Entry, Journal, JournalFailed, NotWritten, Record
from greenroom.actors.kernel.clock import ManualClock, Moment
from greenroom.actors.kernel.codec import Codec
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

__all__ = ["Case", "FaultyJournal", "ManualClock", "RecordingEffectHandler", "given"]

S = TypeVar("S")
V = TypeVar("V")
T = TypeVar("T", bound=Effect)

_ROUNDS = 200


def given(
    core: Core[S, V], *events: Event, volatile: V | None = None, now: Moment | None = None
) -> Case[S, V]:
    """A core to which these events have happened and that has seen this; `now` is when it all happens."""
    return Case(core, volatile=volatile, now=now).given(*events)


class Case(Generic[S, V]):
    """One core and its life so far. Every step returns the case, so steps can be chained.

    `events` and `effects` are those since the last `when`, `wake` or `advance`.
    """

    def __init__(self, core: Core[S, V], *, volatile: V | None = None, now: Moment | None = None) -> None:
        self.core = core
        self.state: S = core.initial()
        self.volatile: V = core.initial_volatile() if volatile is None else volatile
        self.clock = ManualClock() if now is None else ManualClock(now.wall, now.monotonic)
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
        self._versions: dict[str, int] = {}
        self._codec = Codec()
        self._codec.register(core.event_types)

    # steps

    def given(self, *events: Event, cause: str = "") -> Self:
        """Let these events have happened already: they are applied, and nothing reacts to them."""
        for event in events:
            self._store(event, cause)
        return self

    def when(
        self, command: Command, *, volatile: V | None = None, now: Moment | None = None, cause: str = ""
    ) -> Self:
        """Let the core decide on a command; its events are applied and reacted to. Does not settle."""
        if volatile is not None:
            self.volatile = volatile
        if now is not None:
            self.clock = ManualClock(now.wall, now.monotonic)
        self._begin()
        self._carry_out(self._twice(self.core.decide, self.state, command, self.now, self.volatile), cause)
        return self

    def settle(self) -> Self:
        """Ask once what follows from the state."""
        decision = self._twice(self.core.settle, self.state, self.now, self.volatile)
        if decision.reply is not None:
            raise AssertionError(f"settle has nobody to reply to: {decision.reply!r}")
        self.wake_at = decision.wake_at
        self._carry_out(decision, "")
        return self

    def rest(self) -> Self:
        """Settle until nothing more follows, as the shell does after every command."""
        earliest: float | None = None
        for _ in range(_ROUNDS):
            self.settle()
            if self.wake_at is not None:
                earliest = self.wake_at if earliest is None else min(earliest, self.wake_at)
            if not self.decision.events:
                self.wake_at = earliest
                return self
        raise AssertionError(f"{self.core.address} does not settle: {self.events[-4:]}")

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
        """Lose what is volatile, fold the state anew and compare. `Recovered` comes next."""
        state = self.core.initial()
        for stored in self.history:
            state = self.core.apply(state, stored)
        _same(self.state, state, "the replayed state is not the live one")
        self.volatile = self.core.initial_volatile()
        self._begin()
        return self

    # looking

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
        """The moment it is."""
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

    def told(self, to: Address | str) -> list[Command]:
        """The commands that were sent to an actor."""
        return [
            effect.command
            for effect in self.effects
            if isinstance(effect, Tell) and effect.to == Address(str(to))
        ]

    def of(self, kind: type[T]) -> list[T]:
        """The effects of one kind."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    # inside

    def _begin(self) -> None:
        # Events nobody asked about are fine in a long story; they must not leak into the next step.
        self._unchecked = []
        self.events = []
        self.effects = []

    def _carry_out(self, decision: Decision[V], cause: str) -> None:
        self.decision = decision
        self.faults += decision.faults
        if decision.faults and not self.faults_allowed:
            raise AssertionError("".join(one.traceback for one in decision.faults))
        for event in decision.events:
            stored = self._store(event, decision.cause or cause)
            effects = self._twice(self.core.react, self.state, stored)
            self.effects += _effects(effects)
            self.events.append(event)
            self._unchecked.append(event)
        self.effects += _effects(decision.effects)
        if decision.volatile is not None:
            self.volatile = decision.volatile

    def _store(self, event: Event, cause: str) -> Stored[Event]:
        stream = self.core.stream_of(event)
        if not self.core.claims(stream):
            raise AssertionError(
                f"{self.core.address} stores {event!r} in {stream!r}, which it does not claim"
            )
        version = self._versions[stream] = self._versions.get(stream, 0) + 1
        record = Record(
            seq=len(self.history) + 1,
            at=self.now.wall,
            stream=stream,
            version=version,
            type=type(event).TAG,
            schema=type(event).SCHEMA,
            cause=cause,
            data=self._codec.encode(event),
        )
        stored = self._codec.decode(record)
        assert stored is not None, f"{record.type} is retired and must not be stored"
        _same(event, stored.event, "the event does not survive the journal")
        self.history.append(stored)
        self.state = self._twice(self.core.apply, self.state, stored)
        return stored

    def _twice(self, function: Callable[..., Any], *arguments: Any) -> Any:
        before = copy.deepcopy(self.state)
        first, second = function(*arguments), function(*arguments)
        name = getattr(function, "__name__", "it")
        _same(first, second, f"{name} is not pure: the same arguments gave two answers")
        _same(before, self.state, f"{name} is not pure: it changed the state it was given")
        return first


class RecordingEffectHandler:
    """Hands that note what they were asked to do and may answer at once, as the test says.

    `on` maps a kind of effect to what to do about it, typically a `system.tell` with the report.
    """

    def __init__(self, on: dict[type[Effect], Callable[[Any, str], None]] | None = None) -> None:
        self.performed: list[tuple[Effect, str]] = []
        """Each effect with its cause."""
        self.on = dict(on or {})
        self._changed = threading.Condition()

    @property
    def effects(self) -> list[Effect]:
        """What they were asked to do, in order."""
        return [effect for effect, _ in self.performed]

    def of(self, kind: type[T]) -> list[T]:
        """The effects of one kind."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def perform(self, effect: Effect, cause: str) -> None:
        """Note it and do what `on` says."""
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
        """Store the batch or raise the fault."""
        self.attempts.append(batch)
        if self.fault is not None and not (urgent and isinstance(self.fault, NotWritten)):
            raise self.fault
        return self.inside.append(batch, urgent=urgent)

    def read(self, *, after: int = 0, stream: str | None = None) -> Iterator[Record]:
        """Read as the journal inside does."""
        return self.inside.read(after=after, stream=stream)

    def close(self) -> None:
        """Close the journal inside."""
        self.inside.close()


def _effects(effects: Sequence[Any]) -> Sequence[Effect]:
    for effect in effects:
        assert isinstance(effect, Effect), f"{effect!r} is not an effect"
    return effects


def _same(first: Any, second: Any, otherwise: str) -> None:
    if first != second:
        raise AssertionError(f"{otherwise}:\n{first!r}\n{second!r}")


def _lines(events: Sequence[Any]) -> str:
    return "".join(f"\n  {event!r}" for event in events) or " nothing"
