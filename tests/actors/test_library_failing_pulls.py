"""Pulls that keep failing are answered from memory, and limited."""

from __future__ import annotations

from typing import Any

from greenroom.actors.kernel.core import Later
from greenroom.actors.library.messages import (
    CancelPull,
)
from greenroom.actors.testing import Case
from greenroom.actors.values import Caller, Failure
from library_life import KEY, REF, SMOL, new_life, pull
from reports import pull_failed, pulled

NOT_FOUND = Failure(kind="permanent", code="not_found", message="There is no such model.", advice="Look.")


def failing(case: Case[Any, Any], times: int, reference: str = REF) -> None:
    for _ in range(times):
        assert pull(case, reference=reference) == Later(f"pull/{reference}")
        case.when(pull_failed(f"pull.{case.state.jobs}", NOT_FOUND)).rest()


def test_a_pull_that_keeps_failing_is_answered_from_memory_before_it_asks_its_source_again() -> None:
    case = new_life()
    failing(case, 3)
    stored = len(case.history)
    for _ in range(100):
        refusal = pull(case)
        assert (refusal.code, refusal.kind) == ("not_found", "not_found")
        assert "It has failed 3 times in a row" in refusal.advice
        assert 0 < refusal.retry_after <= 1
    assert len(case.history) == stored
    case.advance(1.0)
    failing(case, 1)
    assert 1 < pull(case).retry_after <= 2


def test_a_pull_that_keeps_failing_is_asked_of_its_source_once_a_minute_at_last() -> None:
    case = new_life()
    begun = 0
    for _ in range(3_600):
        if pull(case) == Later(KEY):
            begun += 1
            case.when(pull_failed(f"pull.{case.state.jobs}", NOT_FOUND)).rest()
        case.advance(1.0)
    assert begun < 75
    assert len(case.history) == 2 * begun


def test_a_pull_that_keeps_failing_is_retried_with_a_token_or_by_force() -> None:
    case = new_life()
    failing(case, 3)
    assert pull(case).code == "not_found"
    assert pull(case, token="new") == Later(KEY)


def test_failures_of_a_pull_are_forgotten_with_a_success() -> None:
    case = new_life()
    failing(case, 3)
    case.advance(1.0)
    assert pull(case) == Later(KEY)
    case.when(pulled(f"pull.{case.state.jobs}", SMOL)).rest()
    failing(case, 1)
    assert pull(case) == Later(KEY)


def test_many_pulls_that_keep_failing_are_limited_to_so_many_a_minute() -> None:
    case = new_life()
    for number in range(30):
        failing(case, 1, f"r/x{number}:1")
    other = Caller(kind="process", id="4711")
    assert pull(case, reference="r/other:1", caller=other) == Later("pull/r/other:1"), "not their doing"
    refusal = pull(case, reference="r/new:1")
    assert (refusal.code, refusal.kind) == ("too_many_failures", "exhausted")
    assert pull(case, reference="r/new:1", force=True).code == "too_many_failures"
    case.advance(61.0)
    assert pull(case, reference="r/new:1") == Later("pull/r/new:1")


def test_cancelled_pulls_count_towards_the_limit_too() -> None:
    case = new_life()
    for _ in range(30):
        assert pull(case) == Later(KEY)
        case.when(CancelPull(reference=REF)).rest()
    assert pull(case).code == "too_many_failures"


def test_the_memory_of_pulls_that_keep_failing_is_bounded() -> None:
    case = new_life()
    for number in range(400):
        failing(case, 1, f"r/x{number}:1")
        case.advance(2.0)
    assert len(case.volatile.failures.by_reference) == 256
