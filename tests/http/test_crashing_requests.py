"""A request that ended an engine is not sent to another, and its neighbours are not blamed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from greenroom.actors.gates import GateBoard
from greenroom.actors.values import EngineExit, Failure
from greenroom.runner.http.admission import SentRequests
from greenroom.runner.http.engine_errors import own_doing
from greenroom.runner.http.suspects import KEPT, Suspects, fingerprint
from waiting import until_async

POISON = [{"role": "user", "content": "poison"}]
GIVEN_UP = Failure(kind="transient", code="hangs", message="It was given up.", blame="engine")
ONE, TWO = fingerprint("m", "/p", b"1"), fingerprint("m", "/p", b"2")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("end", "own"),
    [
        (EngineExit(at=0, signal="SIGSEGV"), True),
        (EngineExit(at=0, signal="SIGABRT"), True),
        (EngineExit(at=0, code=1), True),
        (EngineExit(at=0, code=0), False),
        (EngineExit(at=0, code=143), False),
        (EngineExit(at=0, signal="SIGABRT", failure=GIVEN_UP), False),
        (EngineExit(at=0, signal="SIGKILL"), False),
        (EngineExit(at=0, signal="SIGTERM"), False),
        (EngineExit(at=0, code=1, expected=True), False),
        (EngineExit(at=0, lost=True), False),
        (EngineExit(at=0), False),
        (None, False),
    ],
)
def test_only_what_an_engine_did_itself_counts(end: EngineExit | None, own: bool) -> None:
    assert own_doing(end) is own


@pytest.fixture
def sent_requests(clock: Clock) -> SentRequests:
    """Engines that are still as soon as a client has left."""

    def at_once(work: Coroutine[Any, Any, None], then: Callable[[], None]) -> None:
        work.close()
        then()

    return SentRequests(GateBoard(), lambda _: None, at_once, clock)


@pytest.fixture
def suspects(sent_requests: SentRequests, clock: Clock) -> Suspects:
    return Suspects(sent_requests.count, clock)


def given_back() -> None:
    """The slot is of no interest here."""


def test_a_request_that_was_alone_inside_is_a_suspect_at_once_and_for_ten_minutes(
    sent_requests: SentRequests, suspects: Suspects, clock: Clock
) -> None:
    sent_requests.add("e", "r1")
    assert suspects.blame(ONE, in_company=suspects.in_company("e"))
    assert (suspects.counts(ONE), suspects.counts(TWO)) == (2, 0)
    clock.now += KEPT - 1
    assert suspects.counts(ONE) == 2
    clock.now += 2
    assert suspects.counts(ONE) == 0


def test_a_request_that_was_inside_with_others_is_a_suspect_at_the_second_death(
    sent_requests: SentRequests, suspects: Suspects
) -> None:
    for request in ("r1", "r2"):
        sent_requests.add("e", request)
    together = [suspects.in_company("e")]
    sent_requests.release("e", "r1", given_back, early=True)
    together.append(suspects.in_company("e"))
    assert together == [True, True], "who leaves first does not make the other one alone"
    assert not suspects.blame(ONE, in_company=True)
    assert not suspects.blame(TWO, in_company=True)
    sent_requests.add("f", "r3")
    sent_requests.add("f", "r4")
    assert suspects.blame(ONE, in_company=suspects.in_company("f"))
    assert suspects.counts(TWO) == 1


def test_a_client_that_has_just_left_may_be_whose_request_it_was(
    sent_requests: SentRequests, suspects: Suspects, clock: Clock
) -> None:
    sent_requests.add("e", "gone")
    sent_requests.add("e", "stays")
    sent_requests.release("e", "gone", given_back, early=True)
    assert suspects.in_company("e")
    suspects.lives("e")
    clock.now += 60
    assert not suspects.in_company("e")


def test_a_request_whose_answer_was_complete_is_not_a_suspect(
    sent_requests: SentRequests, suspects: Suspects
) -> None:
    sent_requests.add("e", "served")
    sent_requests.add("e", "stays")
    sent_requests.release("e", "served", given_back)
    assert not suspects.in_company("e")


def test_the_memory_of_suspects_is_bounded(
    sent_requests: SentRequests, suspects: Suspects, clock: Clock
) -> None:
    for number in range(10_000):
        suspects.blame(fingerprint("m", "/p", b"%d" % number), in_company=True)
        sent_requests.add(f"e{number}", "r")
        suspects.in_company(f"e{number}")
        sent_requests.release(f"e{number}", "r", given_back, early=True)
        clock.now += 1
    assert len(suspects.deaths) < 5000
    assert len(sent_requests) < 200


@pytest.mark.parametrize("by", ["SIGSEGV", "7"])
async def test_a_request_that_kills_its_engine_alone_is_refused_and_sent_to_no_other(
    open_server: Any, by: str
) -> None:
    server = await open_server("--die-of", "poison", "--die-by", by)
    for _ in range(3):
        status, error = await server.error(server.chat(messages=POISON))
        assert (status, error["code"]) == (422, "request_ended_engine")
    assert len(server.greenroom.engines()) == 1
    async with server.chat() as response:
        assert response.status == 200
    await server.nothing_is_held()


async def test_a_request_whose_engine_was_killed_from_outside_is_not_blamed(open_server: Any) -> None:
    server = await open_server("--first-token-delay", "0.5", "--tokens", "2")
    await server.stream(max_tokens=1)
    task = asyncio.create_task(server.stream())
    await until_async(lambda: server.inside() == 1)
    os.kill(server.engines("ready")[0].pid, signal.SIGKILL)
    assert (await task)[0] == 200
    assert (await server.stream())[0] == 200


async def test_requests_beside_one_that_kills_engines_are_served_and_the_culprit_is_found(
    open_server: Any,
) -> None:
    flags = ("--die-of", "poison", "--die-of-after", "0.2", "--die-by", "SIGSEGV")
    server = await open_server(*flags, "--tokens", "8", "--token-delay", "0.06")
    await server.stream(max_tokens=1)
    neighbours = [
        asyncio.create_task(_ask(server, [{"role": "user", "content": str(number)}])) for number in range(2)
    ]
    await until_async(lambda: server.inside() == 2)
    killer = asyncio.create_task(_ask(server, POISON))
    assert await killer == 422
    assert await asyncio.gather(*neighbours) == [200, 200]
    assert await _ask(server, [{"role": "user", "content": "0"}]) == 200
    assert await _ask(server, POISON) == 422
    await server.nothing_is_held()


async def _ask(server: Any, messages: Any) -> int:
    async with server.chat(messages=messages) as response:
        await response.read()
        return int(response.status)
