"""Waiting, with a bound, for what threads and other processes make true."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

BOUND = 60.0
"""Seconds that anything may take before a test gives up on it."""


def until(condition: Callable[[], Any], bound: float = BOUND, what: str = "it") -> Any:
    """The first value of `condition` that is true."""
    deadline, pauses = time.monotonic() + bound, _pauses()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {bound:g} s"
        time.sleep(next(pauses))
    return found


async def until_async(condition: Callable[[], Any], bound: float = BOUND, what: str = "it") -> Any:
    """The first value of `condition` that is true. The condition may be a coroutine function."""
    deadline, pauses = time.monotonic() + bound, _pauses()
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not happen within {bound:g} s"
        await asyncio.sleep(next(pauses))


def suspend(pid: int) -> None:
    """Stop a process by SIGSTOP, and wait until it is: some kernels let it run on for a moment."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, what=f"the stop of process {pid}")


def _pauses() -> Iterator[float]:
    """What takes long need not be looked at a hundred times a second."""
    pause = 0.01
    while True:
        yield pause
        pause = min(pause * 1.1, 0.05)
