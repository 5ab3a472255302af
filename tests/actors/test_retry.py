"""When to try again: tenacity decides, and nothing sleeps."""

from __future__ import annotations

import time

import pytest
from freezegun import freeze_time
from hypothesis import given
from hypothesis import strategies as st

from greenroom.actors.retry import (
    CONTACT_RETRIES,
    INSTALL_RETRIES,
    NO_NETWORK_AFTER,
    PULL_RETRIES,
    RetryPolicy,
)
from greenroom.actors.values import Failure

TRANSIENT = Failure(kind="transient", code="unreachable", message="No answer.")
PERMANENT = Failure(kind="permanent", code="hash_mismatch", message="It is another file.")
HOURLY = RetryPolicy(attempts=3, first=3600.0, most=3600.0, longest=60.0)
SOON = RetryPolicy(attempts=3, first=10.0, most=10.0, longest=60.0)


def again(policy: RetryPolicy, attempt: int, now: float = 0.0, draw: float = 0.5) -> float | None:
    return policy.retry_at(TRANSIENT, attempt=attempt, now=now, draw=draw)


@freeze_time("2026-11-22 12:00:00")
def test_the_next_attempt_is_recorded_as_a_time() -> None:
    assert again(SOON, 1, time.time()) == 1_795_348_800.0 + 10.0


def test_nothing_sleeps() -> None:
    began = time.monotonic()
    assert again(HOURLY, 1) == 60.0
    assert time.monotonic() - began < 1.0


def test_a_failure_that_would_be_the_same_again_has_no_next_attempt() -> None:
    for failure in (PERMANENT, Failure(kind="cancelled", code="cancelled", message="Cancelled.")):
        assert SOON.retry_at(failure, attempt=1, now=0.0, draw=0.5) is None


def test_the_last_attempt_has_no_next_one() -> None:
    assert again(HOURLY, 2) is not None
    assert again(HOURLY, 3) is None
    assert again(HOURLY, 7) is None


def test_a_policy_may_end_after_a_time() -> None:
    policy = RetryPolicy(attempts=99, within=8.0, most=1.0, longest=60.0)
    for elapsed, expected in ((-5.0, 101.0), (7.9, 101.0), (8.0, None), (10.0**9, None)):
        at = policy.retry_at(TRANSIENT, attempt=1, now=100.0, draw=0.5, elapsed=elapsed)
        assert at == expected, elapsed


def test_a_source_that_has_never_answered_is_given_up_within_seconds() -> None:
    def late(policy: RetryPolicy) -> float | None:
        return policy.retry_at(TRANSIENT, attempt=1, now=0.0, draw=0.5, elapsed=NO_NETWORK_AFTER)

    assert late(CONTACT_RETRIES) is None
    assert late(PULL_RETRIES) is not None


def test_chance_spreads_retries_that_failed_together() -> None:
    assert [again(SOON, 1, draw=draw) for draw in (0.0, 0.5, 0.9)] == [5.0, 10.0, pytest.approx(14.0)]


def test_no_wait_is_longer_than_the_bound() -> None:
    assert again(HOURLY, 1, draw=0.99) == 60.0


def test_a_time_read_from_the_journal_is_clamped_for_a_clock_that_jumped_back() -> None:
    assert HOURLY.clamp(1_000_000.0, now=0.0) == 60.0
    assert HOURLY.clamp(5.0, now=0.0) == 5.0


@given(st.sampled_from([INSTALL_RETRIES, PULL_RETRIES]), st.integers(1, 10), st.floats(0, 0.999))
def test_every_policy_ends_and_is_bounded(policy: RetryPolicy, attempt: int, draw: float) -> None:
    at = again(policy, attempt, 100.0, draw)
    assert at is None or 100.0 < at <= 100.0 + policy.longest
    assert again(policy, 6, draw=draw) is None


def test_waits_grow() -> None:
    policy = RetryPolicy(attempts=9, most=30.0, longest=45.0)
    assert [again(policy, attempt) for attempt in range(1, 7)] == [1, 2, 4, 8, 16, 30]
