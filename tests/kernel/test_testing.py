from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest

from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Answer,
    Command,
    Decision,
    Effect,
    Event,
    Later,
    Recovered,
    Stored,
    Tell,
    refuse,
)
from greenroom.actors.kernel.errors import ActorStopped
from greenroom.actors.testing import ManualSystem, RecordingEffectHandler, given


class Filled(Event, frozen=True, kw_only=True):
    TAG = "filled"
    by: int
    at: float = 0.0


class Emptied(Event, frozen=True, kw_only=True):
    TAG = "emptied"


class Unstorable(Event, frozen=True, kw_only=True):
    TAG = "unstorable"
    what: Any


class Fill(Command[Any], frozen=True, kw_only=True):
    by: int


class Watch(Command[Any], frozen=True, kw_only=True):
    pass


class Pull(Effect, frozen=True, kw_only=True):
    litres: int


class Level(msgspec.Struct, frozen=True):
    litres: int = 0
    last: float = 0.0


class Cistern:
    """Flushes itself at ten litres, and five seconds after it was last filled."""

    address = Address("cistern")
    event_types: Sequence[type[Event]] = (Filled, Emptied, Unstorable)

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def claims(self, stream: str) -> bool:
        return stream == "cistern"

    def stream_of(self, event: Event) -> str:
        return "elsewhere" if self.fault == "stream" else "cistern"

    def initial(self) -> Level:
        return Level()

    def initial_volatile(self) -> int:
        return 0

    def decide(self, state: Level, command: Command[Any], now: Moment, volatile: int) -> Decision[int]:
        match command:
            case Fill(by=by) if self.fault == "random":
                return Decision(events=(Filled(by=int(random.random() * 1e9)),))
            case Fill(by=by) if self.fault == "unstorable":
                return Decision(events=(Unstorable(what=(1, 2)),))
            case Fill(by=by) if by < 0:
                return Decision(reply=refuse("negative", "A cistern is not filled by less than nothing."))
            case Fill(by=by):
                return Decision(
                    events=(Filled(by=by, at=now.monotonic),), reply=command.replied(state.litres + by)
                )
            case Watch():
                return Decision(reply=Later("flush"), volatile=volatile + 1)
            case _:
                return Decision()

    def apply(self, state: Level, stored: Stored[Any]) -> Level:
        match stored.event:
            case Filled(by=by, at=at):
                return Level(state.litres + by, at)
            case _:
                return Level()

    def react(self, state: Level, stored: Stored[Any]) -> Sequence[Effect]:
        if isinstance(stored.event, Emptied):
            return [
                Pull(litres=10),
                Tell(to=Address("sewer"), command=Fill(by=10)),
                Answer(key="flush", outcome="flushed"),
            ]
        return []

    def settle(self, state: Level, now: Moment, volatile: int) -> Decision[int]:
        if state.litres >= 10 or (state.litres and now.monotonic >= state.last + 5):
            return Decision(events=(Emptied(),))
        return Decision(wake_at=state.last + 5 if state.litres else None)


def test_a_case_runs_a_life_step_by_step() -> None:
    case = given(Cistern(), Filled(by=3))
    assert case.state.litres == 3
    case.when(Fill(by=4)).then(Filled)
    assert case.reply == 7
    assert not case.effects
    case.when(Fill(by=3)).rest().then(Filled(by=3, at=1_000.0), Emptied())
    assert case.of(Pull) == [Pull(litres=10)]
    assert case.told("sewer") == [Fill(by=10)]
    assert case.answers == {"flush": "flushed"}
    case.when(Fill(by=-1)).then()
    assert case.refusal.code == "negative"


def test_a_case_waits_as_long_as_the_core_asks_to() -> None:
    case = given(Cistern()).when(Fill(by=1)).rest()
    assert case.wake_at == 1_005.0
    case.advance(4.9).rest().then()
    case.wake().then(Emptied())
    assert case.wake_at is None
    assert case.now.monotonic == 1_005.0


def test_a_rebuilt_case_has_its_state_and_has_seen_nothing() -> None:
    case = given(Cistern(), Filled(by=2), volatile=4).when(Watch())
    assert case.reply == Later("flush")
    assert case.volatile == 5
    case.rebuild().when(Recovered()).then()
    assert (case.state.litres, case.volatile) == (2, 0)


def test_a_failed_then_names_what_was_expected_and_what_came() -> None:
    with pytest.raises(AssertionError, match=r"expected\s+Emptied[\s\S]*but got\s+Filled"):
        given(Cistern()).when(Fill(by=1)).then(Emptied())


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("random", "decide is not pure"),
        ("unstorable", "does not survive the journal"),
        ("stream", "does not claim"),
    ],
)
def test_a_case_finds_the_faults_of_an_impure_core(fault: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        given(Cistern(fault=fault)).when(Fill(by=1))


def test_a_recording_effect_handler_notes_effects_and_can_be_waited_for() -> None:
    heard: list[str] = []
    effect_handler = RecordingEffectHandler({Pull: lambda effect, cause: heard.append(cause)})
    thread = threading.Thread(target=effect_handler.perform, args=(Pull(litres=1), "cistern/4"))
    thread.start()
    assert effect_handler.wait_for(Pull) == [Pull(litres=1)]
    thread.join()
    assert heard == ["cistern/4"]
    with pytest.raises(TimeoutError, match="1 of 2 Pull"):
        effect_handler.wait_for(Pull, 2, timeout=0.01)


def test_in_a_manual_system_a_message_is_handled_when_the_test_says_so() -> None:
    system = ManualSystem()
    system.register(Cistern(), effect_handler=RecordingEffectHandler())
    with system:
        filled, watched = system.ask(Fill(by=9), to="cistern"), system.ask(Watch(), to="cistern")
        assert system.mail("cistern") == [Fill(by=9), Watch()]
        system.step("cistern")
        assert filled.get(timeout=0) == 9
        assert not watched.done()
        system.pass_time(4.9)
        assert system.volatile("cistern") == 1
        assert not watched.done()
        system.pass_time(0.1)
        assert watched.get(timeout=0) == "flushed"
        assert [record.type for record in system.journal.read()] == ["filled", "emptied"]


def test_a_fault_fails_the_step_of_a_manual_system_unless_it_is_allowed() -> None:
    def raises(effect: Effect, cause: str) -> None:
        raise OSError("no such pump")

    for allowed in (False, True):
        system = ManualSystem(faults_allowed=allowed)
        system.register(Cistern(), effect_handler=RecordingEffectHandler({Pull: raises}))
        system.start()
        system.tell(Fill(by=10), to="cistern")
        with nullcontext() if allowed else pytest.raises(AssertionError, match="no such pump"):
            system.rest()
        assert system.state("cistern") == Level()


def test_a_manual_system_that_crashes_loses_what_waits() -> None:
    journal = MemoryJournal()
    system = ManualSystem(journal)
    system.register(Cistern(), effect_handler=RecordingEffectHandler())
    system.start()
    system.tell(Fill(by=3), to="cistern")
    system.rest()
    lost, waiting = system.ask(Fill(by=1), to="cistern"), system.ask(Watch(), to="cistern")
    system.crash()
    for reply in (lost, waiting):
        with pytest.raises(ActorStopped):
            reply.get(timeout=0)
    again = ManualSystem(MemoryJournal(journal.records))
    again.register(Cistern(), effect_handler=RecordingEffectHandler())
    again.start()
    assert again.state("cistern").litres == 3
