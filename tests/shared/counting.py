"""A counter: the smallest event-sourced actor, with places where a test can make it fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Answer,
    Command,
    Decision,
    Effect,
    Event,
    Later,
    NotUnderstood,
    Recovered,
    Stored,
    Tell,
    refuse,
)

COUNTER = Address("counter")


class Counted(Event, frozen=True, kw_only=True):
    TAG = "counted"
    by: float


class Ended(Event, frozen=True, kw_only=True):
    TAG = "ended"
    URGENT = True


class Add(Command[Any], frozen=True, kw_only=True):
    by: float
    times: int = 1


class Noted(Event, frozen=True, kw_only=True):
    TAG = "noted"
    what: str


class Store(Command[Any], frozen=True, kw_only=True):
    event: Event


class End(Command[Any], frozen=True, kw_only=True):
    pass


class Total(Command[Any], frozen=True, kw_only=True):
    pass


class Never(Command[Any], frozen=True, kw_only=True):
    """Is refused."""


class Await(Command[Any], frozen=True, kw_only=True):
    """Is answered when the key is released, or at once when the total is that high already."""

    key: str


class Release(Command[Any], frozen=True, kw_only=True):
    key: str
    outcome: Any = None


class AddAndAwait(Command[Any], frozen=True, kw_only=True):
    """Gets `Later` from the very decision whose event answers it."""

    by: float


class Forward(Command[Any], frozen=True, kw_only=True):
    to: str
    command: Command[Any]


class Run(Command[Any], frozen=True, kw_only=True):
    """Runs something inside `decide`: to block, to raise."""

    what: Callable[[], Any]


class Do(Command[Any], frozen=True, kw_only=True):
    """Asks the effect handler for something, without an event."""

    what: str


class Done(Effect, frozen=True, kw_only=True):
    what: str


class Sum(msgspec.Struct, frozen=True):
    total: float = 0
    events: int = 0
    ended: bool = False


class Counter:
    """Counts. `faults` names one of its functions and what it raises next."""

    event_types: Sequence[type[Event]] = (Counted, Ended, Noted)

    def __init__(self, name: str = "counter") -> None:
        self.address = Address(name)
        self.faults: dict[str, list[BaseException]] = {}
        self.calls: list[str] = []
        self.recovers = True
        self.thread = threading.current_thread()
        """In which it was called last."""
        self.on_settle: Callable[[Sum, Moment, int], Decision[int] | None] = lambda *_: None

    def claims(self, stream: str) -> bool:
        return stream == self.address.name

    def stream_of(self, event: Event) -> str:
        return self.address.name

    def initial(self) -> Sum:
        return Sum()

    def initial_volatile(self) -> int:
        return 0

    def decide(self, state: Sum, command: Command[Any], now: Moment, volatile: int) -> Decision[int]:
        self._called("decide", command)
        match command:
            case Add(by=by, times=times):
                return Decision(
                    events=(Counted(by=by),) * times,
                    reply=command.replied(state.total + by * times),
                    volatile=volatile + 1,
                )
            case Store(event=event):
                return Decision(events=(event,))
            case End():
                return Decision(events=(Ended(),), reply=command.replied("ended"))
            case Total():
                return Decision(reply=command.replied(state.total))
            case Never():
                return Decision(
                    reply=refuse("never", "Never.", advice="Ask for something else.", kind="conflict")
                )
            case Await(key=key):
                return Decision(reply=Later(key), volatile=volatile + 1)
            case Release(key=key, outcome=outcome):
                return Decision(effects=(Answer(key=key, outcome=outcome),))
            case AddAndAwait(by=by):
                return Decision(events=(Counted(by=by),), reply=Later("counted"))
            case Forward(to=to, command=inner):
                return Decision(effects=(Tell(to=Address(to), command=inner),), reply=command.replied("sent"))
            case Run(what=what):
                return Decision(reply=what())
            case Do(what=what):
                return Decision(effects=(Done(what=what),), reply=command.replied("begun"))
            case Recovered():
                if not self.recovers:
                    raise LookupError("where am I?")
                return Decision()
        raise NotUnderstood(self.address, command)

    def apply(self, state: Sum, stored: Stored[Any]) -> Sum:
        self._called("apply", stored.event)
        if isinstance(stored.event, Counted):
            return Sum(state.total + stored.event.by, state.events + 1, state.ended)
        return Sum(state.total, state.events + 1, state.ended or isinstance(stored.event, Ended))

    def react(self, state: Sum, stored: Stored[Any]) -> Sequence[Effect]:
        self._called("react", stored.event)
        return (Done(what=stored.id), Answer(key="counted", outcome=state.total))

    def settle(self, state: Sum, now: Moment, volatile: int) -> Decision[int]:
        self._called("settle", None)
        return self.on_settle(state, now, volatile) or Decision()

    def _called(self, name: str, what: object) -> None:
        self.thread = threading.current_thread()
        self.calls.append(f"{name} {type(what).__name__}" if what is not None else name)
        waiting = self.faults.get(name)
        if waiting:
            raise waiting.pop(0)


class Turnstile:
    """Blocks each caller until it is opened, and shows that one has arrived."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> str:
        self.came.set()
        assert self.open.wait(30)
        return "through"
