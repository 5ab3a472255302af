"""A place in an engine ends with its holder, who may forget to leave."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from fake_greenroom import fake_greenroom
from greenroom.actors import AskExpired, Granted, NoAnswerYet, Pull, Serve
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.runner import Greenroom, tiny_gguf


def serve(greenroom: Greenroom, home: Path, request_id: str = "r") -> Serve:
    pulled = greenroom.system.ask(Pull(reference=str(tiny_gguf(home / "tiny.gguf")))).get(timeout=30)
    return Serve(request_id=request_id, model_id=pulled.model.id, model_ref="tiny")


def inside(greenroom: Greenroom) -> int:
    return sum(one.inside for one in greenroom.gates.readings().values())


def emptied(greenroom: Greenroom) -> bool:
    """Whether no request is inside, once every message has been handled."""
    greenroom.system.rest()
    return inside(greenroom) == 0


def test_a_place_lasts_as_long_as_its_grant_is_held_and_no_longer(home: Path) -> None:
    with fake_greenroom(home) as greenroom:
        granted: Granted | None
        granted = greenroom.system.ask(serve(greenroom, home)).get(timeout=30)
        assert granted is not None
        assert granted.endpoint
        greenroom.system.rest()
        assert inside(greenroom) == 1
        granted = None
        assert emptied(greenroom)


def test_a_forgotten_slot_does_not_delay_the_stop(home: Path) -> None:
    with fake_greenroom(home) as greenroom:
        for n in range(5):
            greenroom.system.ask(serve(greenroom, home, f"r{n}")).get(timeout=30)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10


def test_an_ask_that_expires_leaves_no_place_behind(home: Path) -> None:
    with fake_greenroom(home, "--load-seconds", "1") as greenroom:
        reply = greenroom.system.ask(serve(greenroom, home), timeout=0.3)
        with pytest.raises(AskExpired):
            reply.get(timeout=10)
        greenroom.system.rest()
        assert greenroom.system.volatile(SCHEDULER).queue == ()
        again = greenroom.system.ask(serve(greenroom, home, "again")).get(timeout=30)
        greenroom.system.rest()
        assert (again.engine_id, inside(greenroom)) == (*greenroom.gates.readings(), 1)


def test_a_caller_that_stops_waiting_gives_its_slot_back_when_the_reply_comes(home: Path) -> None:
    with fake_greenroom(home, "--load-seconds", "0.5") as greenroom:
        with pytest.raises(NoAnswerYet):
            greenroom.system.ask(serve(greenroom, home)).get(timeout=0.1)
        again = greenroom.system.ask(serve(greenroom, home, "again")).get(timeout=30)
        greenroom.system.rest()
        assert again.engine_id
        assert inside(greenroom) == 1


async def test_a_task_that_is_cancelled_gives_its_place_back(home: Path) -> None:
    async with fake_greenroom(home, "--load-seconds", "0.5") as greenroom:
        first = await asyncio.to_thread(serve, greenroom, home)

        async def wait() -> None:
            await greenroom.system.ask(first)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        again = await greenroom.system.ask(await asyncio.to_thread(serve, greenroom, home, "again"))
        await asyncio.to_thread(greenroom.system.rest)
        assert again.engine_id
        assert inside(greenroom) == 1
