"""Waiting, with a bound, for what threads and other processes make true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

BOUND = 60.0
"""Seconds that anything may take before a test gives up on it."""


def until(condition: Callable[[], Any], bound: float = BOUND, what: str = "it") -> Any:
    """The first value of `condition` that is true."""
    deadline = time.monotonic() + bound
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {bound:g} s"
        time.sleep(0.01)
    return found


async def until_async(condition: Callable[[], Any], bound: float = BOUND, what: str = "it") -> Any:
    """The first value of `condition` that is true. The condition may be a coroutine function."""
    deadline = time.monotonic() + bound
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not happen within {bound:g} s"
        await asyncio.sleep(0.01)
