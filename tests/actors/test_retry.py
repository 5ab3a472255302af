"""When to try again: tenacity's policies as pure functions."""

from __future__ import annotations

import time

import pytest
from freezegun import freeze_time
from hypothesis import given
from hypothesis import strategies as st
from tenacity import stop_after_attempt, wait_exponential, wait_fixed

from greenroom.actors.retry import INSTALL_RETRIES, PULL_RETRIES, RetryPolicy

HOURLY = RetryPolicy(stop_after_attempt(3), wait_fixed(3600), longest=60.0)


@freeze_time("2026-11-22 12:00:00")
def test_the_next_attempt_is_recorded_as_a_time() -> None:
    policy = RetryPolicy(stop_after_attempt(3), wait_fixed(10), longest=60.0)
    assert policy.retry_at(1, time.time(), 0.5) == 1_795_348_800.0 + 10.0


def test_the_last_attempt_has_no_next_one() -> None:
    assert HOURLY.retry_at(2, 0.0, 0.5) is not None
    assert HOURLY.retry_at(3, 0.0, 0.5) is None
    assert HOURLY.retry_at(7, 0.0, 0.5) is None


def test_chance_spreads_those_who_failed_together() -> None:
    policy = RetryPolicy(stop_after_attempt(3), wait_fixed(10), longest=60.0)
    assert [policy.retry_at(1, 0.0, draw) for draw in (0.0, 0.5, 0.9)] == [5.0, 10.0, pytest.approx(14.0)]


def test_no_wait_is_longer_than_the_bound() -> None:
    assert HOURLY.retry_at(1, 0.0, 0.99) == 60.0


def test_a_time_read_from_the_journal_is_clamped_for_a_clock_that_jumped_back() -> None:
    assert HOURLY.clamp(1_000_000.0, now=0.0) == 60.0
    assert HOURLY.clamp(5.0, now=0.0) == 5.0


@given(st.sampled_from([INSTALL_RETRIES, PULL_RETRIES]), st.integers(1, 10), st.floats(0, 0.999))
def test_every_policy_ends_and_is_bounded(policy: RetryPolicy, attempt: int, draw: float) -> None:
    at = policy.retry_at(attempt, 100.0, draw)
    assert at is None or 100.0 < at <= 100.0 + policy.longest
    assert policy.retry_at(6, 0.0, draw) is None


def test_waits_grow() -> None:
    policy = RetryPolicy(stop_after_attempt(9), wait_exponential(multiplier=1, max=30), longest=45.0)
    assert [policy.retry_at(attempt, 0.0, 0.5) for attempt in range(1, 7)] == [1, 2, 4, 8, 16, 30]
