"""A place in an engine ends with its holder, who may forget to leave."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenroom.actors import AskExpired, Granted, NoAnswerYet, Pull, Serve
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.runner import ExternalBackend, Greenroom, Settings, fake_backend, tiny_gguf


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="gr-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def made(home: Path, programs: Path) -> Callable[..., Greenroom]:
    def make(*flags: str) -> Greenroom:
        settings = Settings(home=home, backends={"fake": ExternalBackend(binary=Path(sys.executable))})
        return Greenroom(settings, backends={"fake": fake_backend(programs / "fake_engine.py", *flags)})

    return make


def serve(greenroom: Greenroom, home: Path, request_id: str = "r") -> Serve:
    pulled = greenroom.system.ask(Pull(reference=str(tiny_gguf(home / "tiny.gguf")))).get(timeout=30)
    return Serve(request_id=request_id, model_id=pulled.model.id, model_ref="tiny")


def inside(greenroom: Greenroom) -> int:
    return sum(one.inside for one in greenroom.gates.readings().values())


def emptied(greenroom: Greenroom) -> bool:
    """Whether no request is inside, once every message has been handled."""
    greenroom.system.rest()
    return inside(greenroom) == 0


def test_a_place_lasts_as_long_as_its_grant_is_held_and_no_longer(
    made: Callable[..., Greenroom], home: Path
) -> None:
    with made() as greenroom:
        granted: Granted | None
        granted = greenroom.system.ask(serve(greenroom, home)).get(timeout=30)
        assert granted is not None
        assert granted.endpoint
        greenroom.system.rest()
        assert inside(greenroom) == 1
        granted = None
        assert emptied(greenroom)


def test_a_forgotten_slot_does_not_delay_the_stop(made: Callable[..., Greenroom], home: Path) -> None:
    with made() as greenroom:
        for n in range(5):
            greenroom.system.ask(serve(greenroom, home, f"r{n}")).get(timeout=30)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10


def test_an_ask_that_expires_leaves_no_place_behind(made: Callable[..., Greenroom], home: Path) -> None:
    with made("--load-seconds", "1") as greenroom:
        reply = greenroom.system.ask(serve(greenroom, home), timeout=0.3)
        with pytest.raises(AskExpired):
            reply.get(timeout=10)
        greenroom.system.rest()
        assert greenroom.system.volatile(SCHEDULER).queue == ()
        again = greenroom.system.ask(serve(greenroom, home, "again")).get(timeout=30)
        greenroom.system.rest()
        assert (again.engine_id, inside(greenroom)) == (*greenroom.gates.readings(), 1)


def test_a_caller_that_stops_waiting_gives_its_slot_back_when_the_reply_comes(
    made: Callable[..., Greenroom], home: Path
) -> None:
    with made("--load-seconds", "0.5") as greenroom:
        with pytest.raises(NoAnswerYet):
            greenroom.system.ask(serve(greenroom, home)).get(timeout=0.1)
        again = greenroom.system.ask(serve(greenroom, home, "again")).get(timeout=30)
        greenroom.system.rest()
        assert again.engine_id
        assert inside(greenroom) == 1


async def test_a_task_that_is_cancelled_gives_its_place_back(
    made: Callable[..., Greenroom], home: Path
) -> None:
    async with made("--load-seconds", "0.5") as greenroom:
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
