from __future__ import annotations

import gc
import math
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from greenroom.actors.kernel.clock import ManualClock, SystemClock


@pytest.fixture
def clock() -> Iterator[SystemClock]:
    clock = SystemClock()
    yield clock
    clock.close()


def test_timers_fire_in_the_order_they_are_due(clock: SystemClock) -> None:
    fired: list[str] = []
    done = threading.Event()
    now = clock.now().monotonic
    clock.call_at(now + 0.03, done.set)
    clock.call_at(now + 0.02, lambda: fired.append("second"))
    clock.call_at(now + 0.01, lambda: fired.append("first"))
    assert done.wait(5)
    assert fired == ["first", "second"]


def test_a_timer_that_comes_first_is_not_kept_waiting_by_a_later_one(clock: SystemClock) -> None:
    done = threading.Event()
    clock.call_at(clock.now().monotonic + 3_600, lambda: None)
    clock.call_at(clock.now().monotonic, done.set)
    assert done.wait(5)


def test_a_cancelled_timer_does_not_fire(clock: SystemClock) -> None:
    fired: list[str] = []
    done = threading.Event()
    now = clock.now().monotonic
    timer = clock.call_at(now + 0.01, lambda: fired.append("cancelled"))
    clock.call_at(now + 0.02, done.set)
    timer.cancel()
    timer.cancel()
    assert done.wait(5)
    timer.cancel()
    assert fired == []


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_timer_that_raises_stops_no_other(clock: SystemClock, error: Any) -> None:
    done = threading.Event()

    def leave() -> None:
        raise error

    clock.call_at(clock.now().monotonic, leave)
    clock.call_at(clock.now().monotonic + 0.01, done.set)
    assert done.wait(5)


@pytest.mark.parametrize("seconds", [1e9, 1e11, 1e300, float("inf")])
def test_a_timer_that_is_too_far_away_stops_no_other(clock: SystemClock, seconds: Any) -> None:
    near, done = threading.Event(), threading.Event()
    clock.call_at(clock.now().monotonic + seconds, lambda: None)
    clock.call_at(clock.now().monotonic + 0.05, near.set)
    assert near.wait(5)  # from now on the far one is the one that is waited for
    clock.call_at(clock.now().monotonic + 0.01, done.set)
    assert done.wait(5)


def test_a_timer_at_an_invalid_time_is_an_error_for_its_caller(clock: SystemClock) -> None:
    for one in (clock, ManualClock()):
        with pytest.raises(ValueError, match="NaN"):
            one.call_at(float("nan"), lambda: None)


def test_cancelled_deadlines_do_not_pile_up(clock: SystemClock) -> None:
    far, kept = clock.now().monotonic + 3_600, clock.call_at(math.inf, lambda: None)

    def timers() -> int:
        return sum(type(one) is type(kept) for one in gc.get_objects())

    before = timers()
    for _ in range(10_000):
        clock.call_at(far, lambda: None).cancel()
    assert timers() - before < 1_000


def test_clearing_cancelled_deadlines_keeps_the_others() -> None:
    passed, ran = [0.0], threading.Semaphore(0)
    clock = SystemClock(lambda: passed[0])
    for _ in range(10):
        clock.call_at(3_600, ran.release)
    for _ in range(1_000):
        clock.call_at(3_600, lambda: None).cancel()
    passed[0] = 3_600
    clock.call_at(1, lambda: None)  # wakes the clock's thread
    for _ in range(10):
        assert ran.acquire(timeout=5)
    clock.close()


def test_a_closed_clock_takes_timers_and_forgets_them() -> None:
    before = set(threading.enumerate())
    clock = SystemClock()
    clock.call_at(clock.now().monotonic + 3_600, lambda: None)
    (thread,) = set(threading.enumerate()) - before
    clock.close()
    clock.close()
    assert not thread.is_alive()
    clock.call_at(clock.now().monotonic, sys.exit).cancel()


def test_a_clock_that_is_never_used_has_no_thread() -> None:
    before = set(threading.enumerate())
    clock = SystemClock()
    assert abs(clock.now().wall - time.time()) < 5
    assert set(threading.enumerate()) <= before
    clock.close()


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock()
    at: list[float] = []
    clock.call_at(1_010, lambda: at.append(clock.now().monotonic))

    def again() -> None:
        clock.call_at(1_007, lambda: at.append(clock.now().monotonic))

    clock.call_at(1_005, again)
    clock.advance(9)
    assert at == [1_007]
    clock.advance(1)
    assert at == [1_007, 1_010]
    assert clock.now().wall == 1_700_000_010


def test_a_wall_clock_that_jumps_moves_no_deadline() -> None:
    clock = ManualClock()
    fired: list[str] = []
    clock.call_at(1_010, lambda: fired.append("due"))
    clock.jump(86_400)
    assert fired == []
    assert clock.now()[:2] == (1_700_086_400, 1_000)
