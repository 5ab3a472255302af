from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from counter_bench import Bench
from counting import (
    COUNTER,
    Add,
    AddAndAwait,
    Await,
    Counted,
    Counter,
    Do,
    Done,
    Release,
    Run,
    Sum,
    Total,
    Turnstile,
)
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import JournalFull
from greenroom.actors.kernel.core import Command, Decision, Fault, fault
from greenroom.actors.kernel.errors import ActorStopped, Refused
from greenroom.actors.kernel.supervision import REBUILD_WINDOW, REBUILDS, CommandParked, Complaints, Intensity
from greenroom.actors.testing import FaultyJournal


def fail(message: str = "broken") -> None:
    raise ValueError(message)


def fail_in_effect(bench: Bench) -> None:
    """Have the effect handler fail on the next effect."""

    def once(effect: object, cause: str) -> None:
        del bench.effect_handler.on[Done]
        raise OSError("no such program")

    bench.effect_handler.on[Done] = once


def parked(bench: Bench) -> list[CommandParked]:
    stored = [bench.system.store.codec.decode(one) for one in bench.journal.read()]
    return [one.event for one in stored if one is not None and isinstance(one.event, CommandParked)]


def test_a_command_that_fails_once_is_retried_and_succeeds(bench: Bench) -> None:
    bench.system.ask(Add(by=4), to=COUNTER).get(timeout=5)
    bench.counter.faults["decide"] = [ValueError("once")]
    assert bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5) == 5
    assert bench.system.state(COUNTER) == Sum(5, 2)
    assert bench.counter.calls.count("decide Recovered") == 1
    assert parked(bench) == []


def test_what_was_volatile_is_lost_in_a_rebuild_and_what_is_durable_is_not(bench: Bench) -> None:
    before: list[int] = []
    bench.counter.on_settle = lambda state, now, volatile: before.append(volatile)
    bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    fail_in_effect(bench)
    with pytest.raises(ActorStopped):
        bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    bench.system.rest()
    assert before == [1, 2, 3, 0]
    assert bench.system.state(COUNTER) == Sum(3, 3)


def test_a_command_that_fails_twice_is_parked_with_its_traceback_and_the_rest_goes_on(bench: Bench) -> None:
    held = Turnstile()
    bench.system.tell(Run(what=held), to=COUNTER)
    assert held.came.wait(5)
    bad = bench.system.ask(Run(what=fail), to=COUNTER, cause="request/9")
    good = bench.system.ask(Add(by=2), to=COUNTER)
    held.open.set()
    with pytest.raises(Refused, match="counter failed on this twice \\(ValueError: broken\\)") as caught:
        bad.get(timeout=5)
    assert caught.value.refusal.kind == "internal"
    assert good.get(timeout=5) == 2
    [event] = parked(bench)
    assert (event.actor, event.command, event.count) == ("counter", "Run", 1)
    assert "fail" in event.fields
    assert "in fail" in event.traceback
    [record] = [one for one in bench.journal.read() if one.type == "command_parked"]
    assert (record.id, record.cause) == ("parked/counter/1", "request/9")


def test_a_report_that_fails_twice_is_parked_too(bench: Bench) -> None:
    bench.system.tell(Run(what=fail), to=COUNTER)
    bench.system.rest()
    assert [event.command for event in parked(bench)] == ["Run"]


def test_waiting_callers_keep_waiting_when_the_actor_is_rebuilt(bench: Bench) -> None:
    waiting = bench.system.ask(Await(key="later"), to=COUNTER)
    bench.system.rest()
    fail_in_effect(bench)
    with pytest.raises(ActorStopped):
        bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    bench.system.rest()
    assert bench.counter.calls.count("decide Recovered") == 2
    assert bench.counter.calls.count("decide Await") == 2
    assert not waiting.done()
    bench.system.ask(Release(key="later", outcome="here"), to=COUNTER).get(timeout=5)
    assert waiting.get(timeout=5) == "here"


def test_a_caller_of_a_command_that_cannot_be_repeated_learns_of_the_rebuild(bench: Bench) -> None:
    bench.counter.react = lambda state, stored: [Done(what="x")]  # type: ignore[method-assign]
    waiting = bench.system.ask(AddAndAwait(by=1), to=COUNTER)
    bench.system.rest()
    fail_in_effect(bench)
    bench.system.tell(Do(what="y"), to=COUNTER)
    with pytest.raises(ActorStopped, match="was rebuilt; ask again"):
        waiting.get(timeout=5)


def test_a_command_is_never_repeated_once_it_was_decided(bench: Bench) -> None:
    fail_in_effect(bench)
    with pytest.raises(ActorStopped, match="failed on this command and was rebuilt"):
        bench.system.ask(Add(by=3), to=COUNTER).get(timeout=5)
    bench.system.rest()
    assert bench.stored() == ["counted", "command_parked"]
    assert bench.system.state(COUNTER) == Sum(3, 1)
    assert bench.counter.calls.count("decide Add") == 1
    [event] = parked(bench)
    assert (event.command, event.fields) == ("Done", "counter/1")


def test_an_effect_that_fails_keeps_no_other_from_being_carried_out(bench: Bench) -> None:
    fail_in_effect(bench)
    bench.system.tell(Add(by=3, times=3), to=COUNTER)
    bench.system.rest()
    assert bench.effect_handler.effects == [
        Done(what="counter/1"),
        Done(what="counter/2"),
        Done(what="counter/3"),
    ]


def test_a_failure_to_settle_does_not_repeat_the_command_before_it(bench: Bench) -> None:
    bench.counter.faults["settle"] = [ValueError("once")]
    assert bench.system.ask(Add(by=3), to=COUNTER).get(timeout=5) == 3
    bench.system.rest()
    assert bench.stored() == ["counted"]
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 3


@pytest.mark.parametrize("function", ["apply", "react"])
def test_an_event_that_cannot_be_folded_is_never_stored(bench: Bench, function: str) -> None:
    bench.counter.faults[function] = [ValueError("not total"), ValueError("not total")]
    with pytest.raises(Refused, match="not total"):
        bench.system.ask(Add(by=3), to=COUNTER).get(timeout=5)
    assert bench.stored() == ["command_parked"]
    assert bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5) == 1


def test_an_event_for_a_stream_the_actor_does_not_claim_is_never_stored(bench: Bench) -> None:
    bench.counter.stream_of = lambda event: "elsewhere"  # type: ignore[method-assign]
    with pytest.raises(Refused, match="does not claim the stream 'elsewhere'"):
        bench.system.ask(Add(by=3), to=COUNTER).get(timeout=5)
    assert bench.stored() == ["command_parked"]


def test_a_rebuild_may_itself_fail_and_be_tried_again(bench: Bench) -> None:
    fail_in_effect(bench)
    bench.counter.recovers = False
    bench.system.tell(Add(by=3), to=COUNTER)
    bench.system.rest()
    assert bench.counter.calls.count("decide Recovered") == 3
    bench.counter.recovers = True
    bench.clock.advance(1)
    bench.system.rest()
    assert bench.counter.calls.count("decide Recovered") == 4
    assert bench.failures == []


def test_an_actor_that_cannot_settle_goes_on_answering_and_is_tried_less_and_less_often(bench: Bench) -> None:
    bench.counter.on_settle = lambda state, now, volatile: fail() if state.total else None
    assert bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5) == 1
    for _ in range(600):
        bench.clock.advance(1)
        bench.system.rest()
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 1
    assert bench.failures == []
    assert bench.counter.calls.count("settle") < 60
    assert {event.command for event in parked(bench)} == {"settle"}


def test_no_caller_waits_for_an_actor_that_cannot_settle(bench: Bench) -> None:
    waiting = bench.system.ask(Await(key="never"), to=COUNTER)
    bench.counter.on_settle = lambda state, now, volatile: fail() if state.total else None
    bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    for _ in range(20):
        bench.clock.advance(1)
        bench.system.rest()
    for one in (waiting, bench.system.ask(Await(key="never"), to=COUNTER)):
        with pytest.raises(Refused, match="cannot decide what to do next") as caught:
            one.get(timeout=5)
        assert caught.value.refusal.kind == "unavailable"
    bench.counter.on_settle = lambda *_: None
    bench.clock.advance(60)
    bench.system.rest()
    waiting = bench.system.ask(Await(key="now"), to=COUNTER)
    bench.system.rest()
    assert not waiting.done()


def test_what_is_refused_because_its_actor_cannot_settle_is_withdrawn(bench: Bench) -> None:
    class AwaitOrAddTen(Await, frozen=True, kw_only=True):
        def withdrawn(self) -> Command[Any]:
            return Add(by=10)

    waiting = bench.system.ask(AwaitOrAddTen(key="never"), to=COUNTER)
    bench.counter.on_settle = lambda state, now, volatile: fail() if state.total == 1 else None
    bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    for _ in range(20):
        bench.clock.advance(1)
        bench.system.rest()
    with pytest.raises(Refused, match="cannot decide what to do next"):
        waiting.get(timeout=5)
    # Otherwise it would be carried out after the rebuild, without its caller's knowledge.
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 11


def test_a_command_after_which_nothing_can_follow_is_taken_back_and_others_go_on_waiting(
    bench: Bench,
) -> None:
    waiting = bench.system.ask(Await(key="a"), to=COUNTER)
    bench.system.rest()
    bench.counter.on_settle = lambda state, now, volatile: fail("too many") if volatile > 1 else None
    with pytest.raises(Refused, match="too many"):
        bench.system.ask(Await(key="b"), to=COUNTER).get(timeout=5)
    assert [event.command for event in parked(bench)] == ["Await"]
    assert not waiting.done()
    assert bench.counter.calls.count("decide Recovered") == 1
    bench.system.ask(Release(key="a", outcome=1), to=COUNTER).get(timeout=5)
    assert waiting.get(timeout=5) == 1


def test_a_fault_a_core_has_kept_to_one_item_is_stored_with_what_it_was_about(bench: Bench) -> None:
    def settle(state: Any, now: Any, volatile: Any) -> Any:
        try:
            fail("this one")
        except ValueError as error:
            return Decision(faults=(fault(error, doing="serve a request", about="r-7"),))

    bench.counter.on_settle = settle
    assert bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5) == 1
    bench.system.rest()
    [event] = parked(bench)
    assert (event.command, event.fields, event.count) == ("serve a request", "r-7", 1)
    assert "ValueError: this one" in event.traceback


def test_what_the_journal_holds_cannot_keep_an_actor_from_starting(
    bench: Bench, make_bench: Callable[..., Bench]
) -> None:
    bench.system.ask(Add(by=13), to=COUNTER).get(timeout=5)
    again = make_bench(MemoryJournal(bench.journal.records))
    again.counter.on_settle = lambda state, now, volatile: fail() if state.total == 13 else None
    again.start()
    assert again.system.ask(Total(), to=COUNTER).get(timeout=5) == 13
    assert again.system.ask(Add(by=1), to=COUNTER).get(timeout=5) == 14
    again.clock.advance(60)
    again.system.rest()
    waiting = again.system.ask(Await(key="a"), to=COUNTER)
    again.system.rest()
    assert not waiting.done()


def test_a_command_for_another_actor_is_refused_and_nothing_else(bench: Bench) -> None:
    class Strange(Command[Any], frozen=True, kw_only=True):
        pass

    with pytest.raises(Refused, match="counter does not know the command Strange") as caught:
        bench.system.ask(Strange(), to=COUNTER).get(timeout=5)
    assert (caught.value.refusal.code, caught.value.refusal.kind) == ("not_understood", "invalid")
    bench.system.tell(Strange(), to=COUNTER)
    bench.system.rest()
    assert bench.stored() == []


def test_an_observation_that_fails_costs_only_what_it_would_have_seen(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(observe=lambda volatile: fail("no such sensor"))
    bench.start()
    assert bench.system.ask(Add(by=2), to=COUNTER).get(timeout=5) == 2
    assert {event.command for event in parked(bench)} == {"look at what others own"}


def test_a_callback_that_fails_costs_no_caller_its_answer(bench: Bench) -> None:
    first, second = (bench.system.ask(Await(key="k"), to=COUNTER) for _ in range(2))
    first.on_done(fail)
    bench.system.ask(Release(key="k", outcome=1), to=COUNTER).get(timeout=5)
    assert (first.get(timeout=5), second.get(timeout=5)) == (1, 1)
    assert parked(bench) == []


def test_a_core_that_never_comes_to_rest_is_slowed_down(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.counter.on_settle = lambda state, now, volatile: Decision(events=(Counted(by=1),))
    bench.system.start()
    first = bench.stored().count("counted")
    for _ in range(120):
        bench.clock.advance(1)
        bench.system.rest()
    assert first == 200
    assert bench.stored().count("counted") < first + 20
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) >= first
    assert "does not settle" in parked(bench)[0].traceback


def test_rebuilds_are_forgiven_after_a_while(bench: Bench) -> None:
    for _ in range(3 * REBUILDS):
        bench.counter.faults["settle"] = [ValueError("now and then")]
        assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 0
        bench.system.rest()
        bench.clock.advance(REBUILD_WINDOW / REBUILDS)
        bench.system.rest()
    assert bench.failures == []


def test_repeating_a_poisonous_command_neither_stops_the_system_nor_grows_the_journal(
    bench: Bench,
) -> None:
    for _ in range(150):
        with pytest.raises(Refused, match="broken"):
            bench.system.ask(Run(what=fail), to=COUNTER).get(timeout=5)
    bench.counter.faults["settle"] = [ValueError("now and then")]
    bench.system.ask(Total(), to=COUNTER).get(timeout=5)
    bench.system.rest()
    assert bench.failures == []
    assert [event.count for event in parked(bench)] == [1, 10, 100]
    assert bench.system.ask(Add(by=2), to=COUNTER).get(timeout=5) == 2


def test_a_parked_command_is_put_aside_even_on_a_full_disk(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(FaultyJournal(MemoryJournal())).start()
    bench.journal.fault = JournalFull("no space left on device")
    with pytest.raises(Refused, match="broken"):
        bench.system.ask(Run(what=fail), to=COUNTER).get(timeout=5)
    bench.journal.fault = None
    assert bench.system.ask(Add(by=2), to=COUNTER).get(timeout=5) == 2


def test_parked_commands_are_numbered_on_after_a_restart(
    bench: Bench, make_bench: Callable[..., Bench]
) -> None:
    with pytest.raises(Refused):
        bench.system.ask(Run(what=fail), to=COUNTER).get(timeout=5)
    again = make_bench(MemoryJournal(bench.journal.records)).start()
    with pytest.raises(Refused):
        again.system.ask(Run(what=fail), to=COUNTER).get(timeout=5)
    assert [record.id for record in again.journal.read()] == ["parked/counter/1", "parked/counter/2"]


def test_secrets_are_taken_out_of_what_is_parked(make_bench: Callable[..., Bench]) -> None:
    class Login(Run, frozen=True, kw_only=True):
        SECRETS = ("token",)
        token: str

    bench = make_bench()
    bench.system.store.redact = lambda text: text.replace("alice:pass@", "***@")
    bench.start()
    what = lambda: fail("hf_secret was not accepted by https://alice:pass@example.org")  # noqa: E731
    with pytest.raises(Refused):
        bench.system.ask(Login(what=what, token="hf_secret"), to=COUNTER).get(timeout=5)
    [event] = parked(bench)
    assert "hf_secret" not in event.fields + event.traceback
    assert "alice" not in event.traceback
    assert "*** was not accepted by https://***@example.org" in event.traceback


def test_an_error_that_cannot_even_be_printed_is_survived(bench: Bench) -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def raise_it() -> None:
        raise Unprintable

    with pytest.raises(Refused, match="Unprintable"):
        bench.system.ask(Run(what=raise_it), to=COUNTER).get(timeout=5)
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 0


def test_one_actors_failure_does_not_touch_another(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    other = Counter("other")
    bench.system.register(other)
    bench.start()
    waiting = bench.system.ask(Await(key="never"), to="other")
    with pytest.raises(Refused):
        bench.system.ask(Run(what=fail), to=COUNTER).get(timeout=5)
    assert not waiting.done()
    assert other.calls.count("decide Recovered") == 1


def test_an_address_outlives_a_rebuild(bench: Bench) -> None:
    thread = bench.counter.thread
    with pytest.raises(Refused):
        bench.system.ask(Run(what=fail), to=COUNTER).get(timeout=5)
    assert bench.counter.thread is thread
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 0


def test_intensity_counts_over_a_sliding_window() -> None:
    intensity = Intensity(limit=2, window=10)
    assert [intensity.allows(now) for now in (0, 1, 9.9, 10, 10.5, 11)] == [
        True,
        True,
        False,
        True,
        False,
        True,
    ]


def test_complaints_tell_one_failure_from_another() -> None:
    complaints = Complaints()

    def caught(function: Callable[[], Any]) -> Fault:
        try:
            function()
        except ValueError as error:
            return fault(error, doing="Total")
        raise AssertionError

    here, there = caught(fail), caught(lambda: int("x"))
    assert complaints.count("a", here) == (1, True)
    assert complaints.count("a", there) == (1, True)
    assert complaints.count("a", here) == (2, False)
    assert complaints.count("b", here) == (1, True)
