from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pykka
import pytest
from blockbuster import blockbuster_ctx

from counter_bench import Bench
from counting import COUNTER, Add, Await, Forward, Never, Release, Run, Total, Turnstile
from greenroom.actors.kernel.answers import Reply
from greenroom.actors.kernel.errors import AskExpired, Refused


async def test_awaiting_an_answer_does_not_block_the_loop(bench: Bench) -> None:
    held = Turnstile()
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while not held.open.is_set():
            beats += 1
            await asyncio.sleep(0)
            if beats >= 100:
                held.open.set()

    # Stock Pykka waits on a lock inside `await`, which blockbuster forbids to whatever runs in a loop.
    with blockbuster_ctx():
        asked = bench.system.ask(Run(what=held), to=COUNTER)
        answer, _ = await asyncio.gather(asked, beat())
    assert answer == "through"
    assert beats == 100


async def test_a_thousand_tasks_await_at_once(bench: Bench) -> None:
    with blockbuster_ctx():
        answers = await asyncio.gather(*(bench.system.ask(Add(by=1), to=COUNTER) for _ in range(1_000)))
    assert sorted(answers) == list(range(1, 1_001))


async def test_a_refusal_is_raised_where_it_is_awaited(bench: Bench) -> None:
    reply = bench.system.ask(Await(key="door"), to=COUNTER)
    bench.system.tell(Release(key="door", outcome="open"), to=COUNTER)
    assert await reply == "open"
    with pytest.raises(Refused, match=r"Never\. Ask for something else\.") as caught:
        await bench.system.ask(Never(), to=COUNTER)
    assert caught.value.refusal.kind == "conflict"


async def test_a_cancelled_wait_leaves_the_answer_to_the_others(bench: Bench) -> None:
    reply = bench.system.ask(Await(key="door"), to=COUNTER)
    impatient = asyncio.ensure_future(_await(reply))
    patient = asyncio.ensure_future(_await(reply))
    await asyncio.sleep(0)
    impatient.cancel()
    bench.system.tell(Release(key="door", outcome=1), to=COUNTER)
    assert await patient == 1
    assert impatient.cancelled() or await asyncio.wait([impatient])


def test_an_answer_that_comes_after_its_loop_has_closed_does_no_harm(bench: Bench) -> None:
    reply = bench.system.ask(Await(key="door"), to=COUNTER)

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_await(reply), 0.01)

    asyncio.run(give_up())
    bench.system.tell(Release(key="door", outcome=1), to=COUNTER)
    assert reply.get(timeout=5) == 1
    assert bench.system.ask(Total(), to=COUNTER).get(timeout=5) == 0


async def test_an_answer_that_is_there_is_awaited_at_once(bench: Bench) -> None:
    reply = bench.system.ask(Total(), to=COUNTER)
    assert reply.get(timeout=5) == await reply == await reply == 0


def test_only_the_first_answer_counts() -> None:
    reply = Reply[int]()
    reply.set(1)
    reply.set(2)
    reply.fail(AskExpired("too late"))
    assert reply.get() == 1


def test_one_of_two_answers_that_race_is_heard_by_all() -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(500):
            reply = Reply[int]()
            heard: list[str] = []
            reply.on_done(partial(heard.append, "early"))
            both = threading.Barrier(2)

            def give(value: int, reply: Reply[Any] = reply, both: threading.Barrier = both) -> None:
                both.wait()
                reply.set(value)

            list(pool.map(give, (1, 2)))
            reply.on_done(partial(heard.append, "late"))
            assert heard == ["early", "late"]
            assert reply.get() in (1, 2)


def test_map_is_refused_because_its_result_could_never_be_awaited() -> None:
    with pytest.raises(TypeError, match="cannot be awaited"):
        Reply().map(lambda value: value)


def test_get_waits_no_longer_than_its_timeout(bench: Bench) -> None:
    with pytest.raises(pykka.Timeout):
        bench.system.ask(Await(key="never"), to=COUNTER).get(timeout=0.01)


def test_a_handler_that_waits_for_another_actor_is_an_error_and_not_a_deadlock(bench: Bench) -> None:
    with pytest.raises(Refused, match="must not wait for an answer"):
        bench.system.ask(Run(what=lambda: bench.system.ask(Total(), to=COUNTER).get()), to=COUNTER).get(
            timeout=5
        )
    assert bench.system.ask(Forward(to="counter", command=Add(by=1)), to=COUNTER).get(timeout=5) == "sent"


def test_forgotten_replies_are_freed(bench: Bench) -> None:
    class Heavy:
        alive = 0

        def __init__(self) -> None:
            Heavy.alive += 1

        def __del__(self) -> None:
            Heavy.alive -= 1

    for _ in range(50):
        bench.system.ask(Run(what=Heavy), to=COUNTER, timeout=3_600).get(timeout=5)
    bench.system.ask(Total(), to=COUNTER).get(timeout=5)
    gc.collect()
    assert Heavy.alive == 0


async def _await(reply: Reply[Any]) -> object:
    return await reply
