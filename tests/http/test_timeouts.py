"""A client's time is up by the time in which we ran."""

from __future__ import annotations

import asyncio
import time

import pytest

from greenroom.runner.http import aiohttp_adapter
from greenroom.runner.http.aiohttp_adapter import Patience


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_adapter, "STEP", 0.05)


async def test_a_client_that_takes_too_long_gets_an_error() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with Patience(0.2):
            await asyncio.sleep(30)
    assert 0.15 < time.monotonic() - began < 10


async def test_time_in_which_the_loop_did_not_run_ends_no_request() -> None:
    async with Patience(0.5) as waiting:
        await asyncio.sleep(0.01)
        time.sleep(1.0)  # noqa: ASYNC251 - the process was stopped
        await asyncio.sleep(0.01)
    assert waiting.used < 0.5


async def test_what_is_in_time_leaves_no_timer_behind() -> None:
    async with Patience(0.1) as waiting:
        pass
    await asyncio.sleep(0.2)
    assert waiting.used < 0.1


async def test_a_cancelled_wait_is_cancelled_and_no_timeout() -> None:
    async def wait() -> None:
        async with Patience(30):
            await asyncio.sleep(30)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
