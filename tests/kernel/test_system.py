from __future__ import annotations

import asyncio
import gc
import logging
import math
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import pytest

from counter_bench import Bench
from counting import COUNTER, Add, Await, Counted, Counter, Done, Forward, Release, Run, Total, Turnstile
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import NotWritten
from greenroom.actors.kernel.clock import SystemClock
from greenroom.actors.kernel.core import Command
from greenroom.actors.kernel.errors import (
    ActorStopped,
    AskExpired,
    MailboxFull,
    Refused,
    StartFailed,
    UnknownActor,
)
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.testing import RecordingEffectHandler


def made(journal: MemoryJournal | None = None, **options: Any) -> ActorSystem:
    system = ActorSystem(journal if journal is not None else MemoryJournal(), **options)
    system.register(Counter(), effect_handler=RecordingEffectHandler())
    return system


# starting and stopping


def test_a_system_is_a_context_manager_in_a_script() -> None:
    with made() as system:
        assert system.ask(Add(by=2), to=COUNTER).get(timeout=5) == 2
    with pytest.raises(ActorStopped):
        system.ask(Total(), to=COUNTER).get(timeout=5)


async def test_a_system_is_a_context_manager_in_a_coroutine() -> None:
    async with made() as system:
        assert await system.ask(Add(by=2), to=COUNTER) == 2
    with pytest.raises(ActorStopped):
        await system.ask(Total(), to=COUNTER)


async def test_a_start_that_is_cancelled_leaves_nothing_running() -> None:
    held, counter = Turnstile(), Counter()
    counter.on_settle = lambda *_: held() and None  # type: ignore[assignment]
    system = ActorSystem(MemoryJournal())
    system.register(counter)

    async def enter() -> None:
        async with system:
            raise AssertionError("it must not come here")

    entering = asyncio.ensure_future(enter())
    await asyncio.to_thread(held.came.wait, 5)
    entering.cancel()
    held.open.set()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert not counter.thread.is_alive()


def test_a_system_leaves_nothing_behind_in_its_process() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = set(threading.enumerate())
    level, root = logging.getLogger("greenroom").level, list(logging.getLogger().handlers)
    with made() as system:
        system.ask(Add(by=2), to=COUNTER, timeout=5).get(timeout=5)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert (logging.getLogger("greenroom").level, logging.getLogger().handlers) == (level, root)
    assert set(threading.enumerate()) <= threads


def test_a_stop_lets_every_actor_finish_its_message() -> None:
    journal = MemoryJournal()
    system = made(journal)
    system.start()
    held = Turnstile()
    system.tell(Run(what=held), to=COUNTER)
    replies = [system.ask(Add(by=1), to=COUNTER) for _ in range(50)]
    stopping = threading.Thread(target=system.stop)
    stopping.start()
    held.open.set()
    stopping.join(10)
    assert [reply.get(timeout=0) for reply in replies] == list(range(1, 51))
    assert len(journal.records) == 50


def test_a_stop_is_bounded_whatever_an_actor_does(
    make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    bench, held = make_bench(), Turnstile()
    bench.start()
    inside = bench.system.ask(Run(what=held), to=COUNTER)
    assert held.came.wait(5)
    waiting = bench.system.ask(Total(), to=COUNTER)
    began = time.monotonic()
    bench.system.stop(timeout=0.1)
    assert time.monotonic() - began < 2
    assert "did not stop within 0.1 seconds" in caplog.text
    with pytest.raises(ActorStopped):
        waiting.get(timeout=1)
    with pytest.raises(ActorStopped):
        bench.system.ask(Total(), to=COUNTER).get(timeout=1)
    held.open.set()
    bench.counter.thread.join(5)
    assert not bench.counter.thread.is_alive()
    assert inside.get(timeout=1) == "through"
    assert bench.failures == []


def test_an_actor_left_behind_stores_nothing_any_more_and_says_nothing(
    make_bench: Callable[..., Bench],
) -> None:
    bench, held = make_bench(), Turnstile()
    bench.start()
    bench.effect_handler.on[Done] = lambda effect, cause: held()  # type: ignore[assignment]
    bench.system.tell(Add(by=1), to=COUNTER)
    assert held.came.wait(5)
    bench.system.stop(timeout=0.05)
    held.open.set()
    bench.counter.thread.join(5)
    assert bench.stored() == ["counted"]
    assert bench.failures == []


def test_waiting_callers_get_an_error_when_the_system_stops(bench: Bench) -> None:
    waiting = bench.system.ask(Await(key="never"), to=COUNTER)
    bench.system.stop()
    with pytest.raises(ActorStopped, match="counter has stopped"):
        waiting.get(timeout=1)


def test_stopping_twice_and_from_two_threads_is_one_stop(bench: Bench) -> None:
    threads = [threading.Thread(target=bench.system.stop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    bench.system.stop()
    assert not bench.counter.thread.is_alive()


def test_a_system_is_started_once(bench: Bench) -> None:
    with pytest.raises(StartFailed, match="started only once"):
        bench.system.start()
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 0
    bench.system.stop()
    with pytest.raises(StartFailed, match="started only once"):
        bench.system.start()


def test_a_failing_start_closes_the_journal_and_stops_the_others(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    broken = Counter("broken")
    broken.faults["settle"] = [ValueError("no")] * 9
    bench.system.register(broken)
    with pytest.raises(StartFailed, match="broken could not start"):
        bench.system.start()
    with pytest.raises(NotWritten, match="closed"):
        bench.journal.append([])
    assert not bench.counter.thread.is_alive()


def test_actors_may_send_messages_while_they_start(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    early = Counter("early")
    early.on_settle = lambda state, now, volatile: (
        bench.system.tell(Add(by=1), to=COUNTER) if early.calls.count("settle") == 1 else None
    )
    bench.system.register(early)
    bench.start()
    bench.system.rest()
    assert bench.system.state(COUNTER).total == 1


# addresses


def test_an_unknown_address_is_an_error_that_names_the_known_ones(bench: Bench) -> None:
    with pytest.raises(UnknownActor, match=r"no actor 'couter' in this system \(there are: counter\)"):
        bench.system.ask(Total(), to="couter").get(timeout=1)
    with pytest.raises(UnknownActor):
        bench.system.tell(Total(), to="couter")
    with pytest.raises(UnknownActor):
        bench.system.state("couter")


def test_an_actor_is_registered_once_and_before_the_start(
    bench: Bench, make_bench: Callable[..., Bench]
) -> None:
    with pytest.raises(StartFailed, match="before the system starts"):
        bench.system.register(Counter("late"))
    with pytest.raises(StartFailed, match="already an actor counter"):
        make_bench().system.register(Counter())


def test_an_ask_before_the_start_is_refused(make_bench: Callable[..., Bench]) -> None:
    with pytest.raises(ActorStopped, match="not running"):
        make_bench().system.ask(Total(), to=COUNTER).get(timeout=1)


def test_a_tell_to_a_stopped_actor_goes_nowhere(bench: Bench) -> None:
    bench.system.stop()
    bench.system.tell(Add(by=1), to=COUNTER)
    bench.system.rest()
    assert bench.stored() == []


def test_two_systems_in_one_process_have_two_journals(make_bench: Callable[..., Bench]) -> None:
    one, two = make_bench().start(), make_bench().start()
    one.system.ask(Add(by=1), to=COUNTER).get(timeout=5)
    two.system.ask(Add(by=2), to=COUNTER).get(timeout=5)
    one.system.stop()
    two.system.ask(Add(by=3), to=COUNTER).get(timeout=5)
    assert (len(one.stored()), len(two.stored())) == (1, 2)
    assert (one.system.state(COUNTER).total, two.system.state(COUNTER).total) == (1, 5)


# mailbox and deadlines


def test_more_asks_than_the_mailbox_holds_are_refused_and_tells_are_not(
    make_bench: Callable[..., Bench],
) -> None:
    bench, held = make_bench(mailbox=3), Turnstile()
    bench.start()
    bench.system.tell(Run(what=held), to=COUNTER)
    assert held.came.wait(5)
    taken = [bench.system.ask(Total(), to=COUNTER) for _ in range(3)]
    with pytest.raises(MailboxFull, match="counter has 3 requests waiting"):
        bench.system.ask(Total(), to=COUNTER).get(timeout=1)
    bench.system.tell(Add(by=1), to=COUNTER)
    held.open.set()
    assert [reply.get(timeout=5) for reply in taken] == [0, 0, 0]
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 1


def test_an_ask_expires_at_its_deadline_even_while_the_actor_is_busy(
    make_bench: Callable[..., Bench],
) -> None:
    bench, held = make_bench(), Turnstile()
    bench.start()
    bench.system.tell(Run(what=held), to=COUNTER)
    assert held.came.wait(5)
    reply = bench.system.ask(Add(by=1), to=COUNTER, timeout=30)
    bench.clock.advance(29.9)
    assert not reply.done()
    bench.clock.advance(0.1)
    with pytest.raises(AskExpired, match="counter did not answer within 30 seconds"):
        reply.get(timeout=0)
    held.open.set()
    # Its caller no longer waits, so it is not carried out without its knowledge.
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 0


def test_an_ask_that_was_answered_with_later_expires_too(bench: Bench) -> None:
    reply = bench.system.ask(Await(key="door"), to=COUNTER, timeout=10)
    bench.system.rest()
    bench.clock.advance(10)
    with pytest.raises(AskExpired):
        reply.get(timeout=0)
    bench.system.ask(Release(key="door", outcome=1), to=COUNTER).get(timeout=5)
    with pytest.raises(AskExpired):
        reply.get(timeout=0)


def test_expired_asks_leave_nothing_behind(bench: Bench) -> None:
    replies = []
    for _ in range(300):
        replies.append(weakref.ref(bench.system.ask(Await(key="door"), to=COUNTER, timeout=1)))
        bench.system.rest()
        bench.clock.advance(1)
    gc.collect()
    assert sum(reply() is not None for reply in replies) <= 1


def test_deadlines_run_on_the_real_clock_too() -> None:
    with made(clock=SystemClock()) as system:
        with pytest.raises(AskExpired):
            system.ask(Await(key="door"), to=COUNTER, timeout=0.02).get(timeout=5)
        system.clock.close()


# what listeners receive, and what rest means


def test_listeners_hear_every_stored_event_and_cannot_undo_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def listen(record: object) -> None:
        heard.append(record.id)  # type: ignore[attr-defined]
        raise ValueError("deaf")

    bench.system.on_record(listen)
    assert bench.system.ask(Add(by=1, times=2), to=COUNTER).get(timeout=5) == 2
    assert heard == ["counter/1", "counter/2"]
    assert "a listener failed on counter/1" in caplog.text


def test_rest_waits_until_no_message_is_left(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    for number in range(5):
        bench.system.register(Counter(f"relay-{number}"))
    bench.start()
    command: object = Add(by=1)
    for hop in ["counter", *(f"relay-{number}" for number in range(4))]:
        command = Forward(to=hop, command=command)  # type: ignore[arg-type]
    bench.system.tell(command, to="relay-4")  # type: ignore[arg-type]
    bench.system.rest()
    assert bench.system.state(COUNTER).total == 1


def test_rest_fails_when_the_system_does_not_come_to_rest(make_bench: Callable[..., Bench]) -> None:
    bench, held = make_bench(), Turnstile()
    bench.start()
    bench.system.tell(Run(what=held), to=COUNTER)
    with pytest.raises(TimeoutError, match="1 messages are still in flight"):
        bench.system.rest(timeout=0.02)
    held.open.set()
    bench.system.rest()


@pytest.mark.parametrize("wrong", ["Total", Total, None, {"by": 1}, Counted(by=1)])
def test_a_message_that_is_not_a_command_is_a_type_error_for_its_caller_and_nothing_else(
    bench: Bench, wrong: Any
) -> None:
    for send in (bench.system.ask, bench.system.tell):
        with pytest.raises(TypeError, match="an actor accepts an instance of a Command, not"):
            send(wrong, to=COUNTER)
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 0
    assert (bench.failures, bench.stored()) == ([], [])


def test_an_address_is_a_text_or_an_address(bench: Bench) -> None:
    with pytest.raises(TypeError, match="must be an address or a string, not 7"):
        bench.system.ask(Total(), to=7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Total does not say which actor handles it"):
        bench.system.ask(Total())


@pytest.mark.parametrize("wrong", [Add(by="1"), Add(by=1, times=2.5), Add(by=None), Add(by=[1])])  # type: ignore[arg-type]
def test_a_field_of_the_wrong_type_is_refused_before_the_actor_sees_it(bench: Bench, wrong: Any) -> None:
    with pytest.raises(Refused, match=r'Add: "(by|times)": Expected') as caught:
        bench.system.ask(wrong, to=COUNTER).get(timeout=5)
    assert (caught.value.refusal.code, caught.value.refusal.kind) == ("bad_field", "invalid")
    with pytest.raises(Refused):
        bench.system.tell(wrong, to=COUNTER)
    bench.system.rest()
    assert "decide Add" not in bench.counter.calls


def test_a_report_is_never_lost_for_its_form(bench: Bench) -> None:
    bench.system.report(Add(by=2, times=True), to=COUNTER)
    bench.system.rest()
    assert bench.system.state(COUNTER).total == 2


def test_a_limit_in_a_fields_type_is_kept_and_explained_in_the_hosts_words() -> None:
    class Bounded(Command[Any], frozen=True, kw_only=True):
        size: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
        share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0

    def explain(error: Exception) -> tuple[str, str]:
        return ("size", f"no: {error}") if "size" in str(error) else ("", "")

    with made(explain=explain) as system:
        for wrong, said in ((Bounded(size=2**70), "no: Expected"), (Bounded(share=math.nan), '"share": ')):
            with pytest.raises(Refused, match=said):
                system.ask(wrong, to=COUNTER).get(timeout=5)


def test_an_ask_that_expires_takes_its_command_back(bench: Bench) -> None:
    class Book(Await, frozen=True, kw_only=True):
        def withdrawn(self) -> Command[Any]:
            return Add(by=-1)

    reply = bench.system.ask(Book(key="k"), to=COUNTER, timeout=3)
    bench.system.rest()
    bench.clock.advance(4)
    bench.system.rest()
    with pytest.raises(AskExpired):
        reply.get(timeout=5)
    assert bench.system.state(COUNTER).total == -1


def test_an_ask_that_is_answered_in_time_takes_nothing_back(bench: Bench) -> None:
    class Book(Await, frozen=True, kw_only=True):
        def withdrawn(self) -> Command[Any]:
            return Add(by=-1)

    reply = bench.system.ask(Book(key="k"), to=COUNTER, timeout=3)
    bench.system.ask(Release(key="k", outcome=1), to=COUNTER).get(timeout=5)
    bench.clock.advance(4)
    bench.system.rest()
    assert reply.get(timeout=5) == 1
    assert bench.system.state(COUNTER).total == 0


class Seat(msgspec.Struct, weakref=True):
    number: int


class Book(Await, frozen=True, kw_only=True):
    @property
    def is_leased(self) -> bool:
        return True

    def withdrawn(self) -> Command[Any]:
        return Add(by=-1)


def test_a_leased_answer_withdraws_its_command_with_the_last_reference_to_it(bench: Bench) -> None:
    reply = bench.system.ask(Book(key="seat"), to=COUNTER)
    bench.system.report(Release(key="seat", outcome=Seat(1)), to=COUNTER)
    seat = reply.get(timeout=5)
    del reply
    bench.system.rest()
    assert (seat.number, bench.system.state(COUNTER).total) == (1, 0)
    del seat
    gc.collect()
    bench.system.rest()
    assert bench.system.state(COUNTER).total == -1


def test_leases_can_be_ended_at_once_and_an_answer_that_cannot_be_leased_is_given_all_the_same(
    bench: Bench,
) -> None:
    replies = [bench.system.ask(Book(key=key), to=COUNTER) for key in "ab"]
    bench.system.report(Release(key="a", outcome=Seat(1)), to=COUNTER)
    bench.system.report(Release(key="b", outcome=5), to=COUNTER)
    held = [reply.get(timeout=5) for reply in replies]
    for _ in range(2):
        bench.system.end_leases()
        bench.system.rest()
    assert held[1] == 5
    assert bench.system.state(COUNTER).total == -1
