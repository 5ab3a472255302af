"""The order of things for one decision, and what happens when the journal takes nothing."""

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
    End,
    Ended,
    Forward,
    Noted,
    Release,
    Run,
    Store,
    Total,
    Turnstile,
)
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import JournalFailed, JournalFull, NotWritten
from greenroom.actors.kernel.core import Answer, Decision, Event
from greenroom.actors.kernel.errors import Refused, SystemFailed
from greenroom.actors.kernel.executor import RETRY_AFTER_NOT_WRITTEN, TICK
from greenroom.actors.testing import FaultyJournal


class Strange(Event, frozen=True, kw_only=True):
    """Not an event type of the counter."""

    TAG = "counted"


@pytest.fixture
def disk(make_bench: Callable[..., Bench]) -> Bench:
    """A bench whose journal has the faults a test gives it."""
    bench = make_bench(FaultyJournal(MemoryJournal()))
    return bench.start()


def test_events_are_stored_then_applied_then_effects_run_then_the_reply_is_given(disk: Bench) -> None:
    order: list[tuple[str, int, float]] = []

    def look(what: str) -> None:
        order.append((what, len(disk.journal.attempts), disk.system.state(COUNTER).total))

    disk.journal.inside = MemoryJournal(before_append=lambda batch: look("append"))
    disk.effect_handler.on[Done] = lambda effect, cause: look("effect")
    reply = disk.system.ask(Add(by=5), to=COUNTER)
    reply.on_done(lambda: look("reply"))
    assert reply.get(timeout=5) == 5
    assert order == [("append", 1, 0), ("effect", 1, 5), ("reply", 1, 5)]
    disk.system.rest()
    assert disk.counter.calls[-4:] == ["decide Add", "apply Counted", "react Counted", "settle"]


def test_the_actor_has_settled_when_a_caller_is_answered(disk: Bench) -> None:
    last_call: list[str] = []
    replies = [disk.system.ask(Await(key="3"), to=COUNTER), disk.system.ask(Add(by=3), to=COUNTER)]
    for reply in (*replies, disk.system.ask(Release(key="3"), to=COUNTER)):
        reply.on_done(lambda: last_call.append(disk.counter.calls[-1]))
    for reply in replies:
        reply.get(timeout=5)
    disk.system.rest()
    assert last_call == ["settle"] * 3


def test_the_events_of_one_decision_are_one_batch(disk: Bench) -> None:
    disk.system.ask(Add(by=1, times=3), to=COUNTER, cause="request/7").get(timeout=5)
    assert [len(batch) for batch in disk.journal.attempts] == [3]
    assert [(record.id, record.cause) for record in disk.journal.read()] == [
        ("counter/1", "request/7"),
        ("counter/2", "request/7"),
        ("counter/3", "request/7"),
    ]


def test_a_batch_becomes_visible_as_a_whole(bench: Bench) -> None:
    seen: list[int] = []
    bench.counter.react = lambda state, stored: seen.append(bench.system.state(COUNTER).events) or ()  # type: ignore[method-assign, func-returns-value, redundant-expr]
    bench.system.ask(Add(by=1, times=3), to=COUNTER).get(timeout=5)
    assert set(seen) <= {0, 3}


def test_effects_carry_the_event_that_made_them_necessary(bench: Bench) -> None:
    bench.system.ask(Add(by=1, times=2), to=COUNTER, cause="request/1").get(timeout=5)
    bench.system.ask(Do(what="look"), to=COUNTER, cause="request/2").get(timeout=5)
    assert bench.effect_handler.performed == [
        (Done(what="counter/1"), "counter/1"),
        (Done(what="counter/2"), "counter/2"),
        (Done(what="look"), "request/2"),
    ]


def test_a_replay_runs_no_effects(bench: Bench, make_bench: Callable[..., Bench]) -> None:
    bench.system.ask(Add(by=4, times=2), to=COUNTER).get(timeout=5)
    again = make_bench(MemoryJournal(bench.journal.records)).start()
    assert again.system.state(COUNTER) == bench.system.state(COUNTER)
    assert again.effect_handler.performed == []
    assert again.system.ask(Add(by=1), to=COUNTER).get(timeout=5) == 9
    assert again.stored() == ["counted"] * 3


def test_an_answer_among_the_effects_of_the_decision_that_said_later_is_not_missed(bench: Bench) -> None:
    assert bench.system.ask(AddAndAwait(by=3), to=COUNTER).get(timeout=5) == 3


def test_every_caller_that_waits_for_a_key_gets_its_answer_once(bench: Bench) -> None:
    replies = [bench.system.ask(Await(key=key), to=COUNTER) for key in "aab"]
    bench.system.ask(Release(key="a", outcome=1), to=COUNTER).get(timeout=5)
    assert [reply.get(timeout=5) for reply in replies[:2]] == [1, 1]
    assert not replies[2].done()
    bench.system.ask(Release(key="a", outcome=2), to=COUNTER).get(timeout=5)
    assert not replies[2].done()


def test_what_the_live_state_is_folded_from_is_what_a_replay_will_read(
    make_bench: Callable[..., Bench],
) -> None:
    class Listed(Event, frozen=True, kw_only=True):
        TAG = "listed"
        names: tuple[str, ...]

    bench = make_bench()
    applied: list[object] = []
    bench.counter.apply = lambda state, stored: applied.append(stored.event) or state  # type: ignore[method-assign, func-returns-value, redundant-expr]
    bench.counter.on_settle = lambda state, now, volatile: (
        Decision(events=(Listed(names=["a"]),)) if not applied else None  # type: ignore[arg-type]
    )
    bench.system.store.codec.register([Listed])
    bench.start()
    assert applied == [Listed(names=("a",))]


# the journal takes nothing


def test_what_is_known_not_written_is_refused_with_507_and_changes_nothing(disk: Bench) -> None:
    disk.journal.fault = JournalFull("no space left on device")
    with pytest.raises(Refused, match="no space left on device") as caught:
        disk.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    assert (caught.value.refusal.kind, caught.value.refusal.code) == ("exhausted", "journal_full")
    assert disk.system.state(COUNTER).events == 0
    assert disk.effect_handler.performed == []
    assert disk.system.ask(Total(), to=COUNTER).get(timeout=5) == 0
    disk.journal.fault = None
    assert disk.system.ask(Add(by=1), to=COUNTER).get(timeout=5) == 1


def test_stops_are_recorded_on_a_full_disk(disk: Bench) -> None:
    disk.journal.fault = JournalFull("no space left on device")
    assert disk.system.ask(End(), to=COUNTER).get(timeout=5) == "ended"
    assert disk.system.state(COUNTER).ended


def test_a_report_is_handled_again_until_it_can_be_stored(disk: Bench) -> None:
    disk.journal.fault = JournalFull("no space left on device")
    disk.system.tell(Add(by=7), to=COUNTER)
    disk.system.rest()
    for _ in range(3):
        disk.clock.advance(RETRY_AFTER_NOT_WRITTEN)
        disk.system.rest()
    assert len(disk.journal.attempts) == 4
    assert disk.system.state(COUNTER).total == 0
    disk.journal.fault = None
    disk.clock.advance(RETRY_AFTER_NOT_WRITTEN)
    disk.system.rest()
    assert disk.system.state(COUNTER).total == 7
    disk.clock.advance(60)
    disk.system.rest()
    assert disk.system.state(COUNTER).total == 7


def test_a_report_the_journal_refuses_for_another_reason_is_parked_in_the_end(disk: Bench) -> None:
    def refuse(batch: object) -> None:
        if batch[0].type == "counted":  # type: ignore[index]
            raise NotWritten("the versions do not follow")

    disk.journal.inside = MemoryJournal(before_append=refuse)
    disk.system.tell(Add(by=7), to=COUNTER)
    for _ in range(100):
        disk.system.rest()
        disk.clock.advance(RETRY_AFTER_NOT_WRITTEN)
    assert disk.stored() == ["command_parked"]
    with pytest.raises(Refused, match="the versions do not follow") as caught:
        disk.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    assert (caught.value.refusal.kind, caught.value.refusal.code) == ("exhausted", "journal_refused")


def test_what_follows_from_the_state_waits_for_the_disk_too(disk: Bench) -> None:
    disk.counter.on_settle = lambda state, now, volatile: (
        Decision(events=(Ended(),)) if state.total and not state.ended else None
    )
    Ended.URGENT = False
    try:
        refusing = [True]

        def refuse_ended(batch: object) -> None:
            if refusing[0] and any(entry.type == "ended" for entry in batch):  # type: ignore[attr-defined]
                raise JournalFull("no space left on device")

        disk.journal.inside = MemoryJournal(before_append=refuse_ended)
        assert disk.system.ask(Add(by=1), to=COUNTER).get(timeout=5) == 1
        disk.system.rest()
        assert not disk.system.state(COUNTER).ended
        refusing[0] = False
        disk.clock.advance(RETRY_AFTER_NOT_WRITTEN)
        disk.system.rest()
        assert disk.system.state(COUNTER).ended
    finally:
        Ended.URGENT = True


def test_an_actor_starts_on_a_full_disk(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(FaultyJournal(MemoryJournal()))
    bench.journal.fault = JournalFull("no space left on device")
    bench.counter.on_settle = lambda state, now, volatile: (
        Decision(events=(Counted(by=1),)) if not state.total else None
    )
    bench.start()
    assert bench.system.state(COUNTER).total == 0
    bench.journal.fault = None
    bench.clock.advance(RETRY_AFTER_NOT_WRITTEN)
    bench.system.rest()
    assert bench.system.state(COUNTER).total == 1


@pytest.mark.parametrize(
    "event",
    [
        Counted(by=float("nan")),
        Counted(by=object()),  # type: ignore[arg-type]
        Noted(what="\ud800"),
        Noted(what=5),  # type: ignore[arg-type]
        Strange(),
    ],
)
def test_what_cannot_be_stored_is_refused_before_it_poisons_the_journal(
    bench: Bench, make_bench: Callable[..., Bench], event: Any
) -> None:
    with pytest.raises(Refused) as caught:
        bench.system.ask(Store(event=event), to=COUNTER).get(timeout=5)
    assert (caught.value.refusal.kind, caught.value.refusal.code) == ("exhausted", "not_storable")
    assert bench.stored() == []
    assert bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5) == 1
    assert make_bench(MemoryJournal(bench.journal.records)).start().system.state(COUNTER).total == 1


def test_a_report_that_cannot_be_stored_is_parked_and_not_retried_forever(bench: Bench) -> None:
    bench.system.tell(Add(by=float("nan")), to=COUNTER)
    bench.system.rest()
    assert bench.stored() == ["command_parked"]
    bench.clock.advance(60)
    bench.system.rest()
    assert bench.stored() == ["command_parked"]


# the journal does not know


@pytest.mark.parametrize("fault", [JournalFailed("fsync failed"), OSError("input/output error")])
def test_a_journal_that_does_not_know_stops_the_system_and_says_so(disk: Bench, fault: Any) -> None:
    waiting = disk.system.ask(Await(key="never"), to=COUNTER)
    disk.journal.fault = fault
    with pytest.raises(SystemFailed) as caught:
        disk.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    assert isinstance(caught.value.__cause__, JournalFailed)
    with pytest.raises(SystemFailed):
        waiting.get(timeout=5)
    with pytest.raises(SystemFailed):
        disk.system.ask(Total(), to=COUNTER).get(timeout=5)
    assert len(disk.failures) == 1
    assert isinstance(disk.system.failure, JournalFailed)
    assert disk.effect_handler.performed == []
    assert len(disk.journal.attempts) == 1


def test_nothing_that_was_queued_is_handled_once_the_journal_has_failed(disk: Bench) -> None:
    held = Turnstile()
    first = disk.system.ask(Run(what=held), to=COUNTER)
    assert held.came.wait(5)
    disk.journal.fault = JournalFailed("fsync failed")
    queued = [disk.system.ask(command, to=COUNTER) for command in (Add(by=1), Total(), Do(what="look"))]
    held.open.set()
    assert first.get(timeout=5) == "through"
    for reply in queued:
        with pytest.raises(SystemFailed):
            reply.get(timeout=5)
    assert disk.effect_handler.performed == []


def test_two_actors_that_fail_at_once_are_one_failure(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(FaultyJournal(MemoryJournal()))
    others = [Counter(f"other-{number}") for number in range(4)]
    for other in others:
        bench.system.register(other)
    bench.start()
    bench.journal.fault = JournalFailed("fsync failed")
    replies = [bench.system.ask(Add(by=1), to=other.address) for other in others]
    for reply in replies:
        with pytest.raises(SystemFailed):
            reply.get(timeout=5)
    bench.system.stop()
    assert len(bench.failures) == 1


def test_a_host_may_stop_the_system_from_on_failure(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(FaultyJournal(MemoryJournal()))
    stopped: list[str] = []

    def stop(_: BaseException) -> None:
        bench.system.stop(timeout=1)
        stopped.append("yes")

    bench.on_failure = stop
    bench.start()
    bench.journal.fault = JournalFailed("fsync failed")
    with pytest.raises(SystemFailed):
        bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    assert stopped == ["yes"]


# time


def test_a_core_is_asked_what_follows_on_every_tick(bench: Bench) -> None:
    bench.system.rest()
    before = bench.counter.calls.count("settle")
    for _ in range(3):
        bench.clock.advance(TICK)
        bench.system.rest()
    assert bench.counter.calls.count("settle") == before + 3


def test_a_core_is_woken_when_it_asked_to_be(bench: Bench) -> None:
    due = bench.clock.now().monotonic + 2

    def settle(state: Any, now: Any, volatile: Any) -> Any:
        if state.total and not state.ended:
            return Decision(events=(Ended(),)) if now.monotonic >= due else Decision(wake_at=due)
        return None

    bench.counter.on_settle = settle
    bench.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    bench.system.rest()
    bench.clock.advance(1.9)
    bench.system.rest()
    assert not bench.system.state(COUNTER).ended
    bench.clock.advance(0.1)
    bench.system.rest()
    assert bench.system.state(COUNTER).ended


def test_a_core_that_asks_to_be_woken_in_the_past_does_not_spin(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.counter.on_settle = lambda state, now, volatile: Decision(wake_at=now.monotonic - 5)
    bench.start()
    bench.clock.advance(0)
    bench.system.rest()
    assert bench.counter.calls.count("settle") == 1


def test_a_busy_actor_sets_no_timer_a_message(bench: Bench) -> None:
    for _ in range(200):
        bench.system.ask(Total(), to=COUNTER).get(timeout=5)
    assert bench.clock.waiting <= 2


def test_answers_wait_for_what_follows_from_another_actor(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    other = Counter("other")
    bench.system.register(other)
    bench.start()
    reply = bench.system.ask(Await(key="go"), to=COUNTER)
    bench.system.tell(Forward(to="counter", command=Release(key="go", outcome="gone")), to="other")
    assert reply.get(timeout=5) == "gone"


def test_a_command_to_an_unknown_actor_is_logged_and_does_no_harm(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    assert bench.system.ask(Forward(to="unknown", command=Add(by=1)), to=COUNTER).get(timeout=5) == "sent"
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 0
    assert "undelivered Add" in caplog.text


def test_settling_answers_waiting_callers(bench: Bench) -> None:
    bench.counter.on_settle = lambda state, now, volatile: (
        Decision(events=(Ended(),), effects=(Answer(key="end", outcome="done"),))
        if state.total > 2 and not state.ended
        else None
    )
    reply = bench.system.ask(Await(key="end"), to=COUNTER)
    bench.system.tell(Add(by=3), to=COUNTER)
    assert reply.get(timeout=5) == "done"
