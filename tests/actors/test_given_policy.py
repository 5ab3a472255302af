"""A program's own Tenacity object decides when an attempt is repeated, and nothing sleeps."""

from __future__ import annotations

import msgspec
import pytest
import tenacity

from greenroom.actors.retry import given_policy
from greenroom.actors.values import Failure

OFFLINE = Failure(kind="transient", code="unreachable", message="The index could not be reached.")
PERMANENT = Failure(kind="permanent", code="hash_mismatch", message="It is another file.")


def again(given: object, failure: Failure = OFFLINE, attempt: int = 1, elapsed: float = 0.0) -> float | None:
    """Seconds until the attempt that follows, as a program's own Tenacity object says."""
    return given_policy(given).retry_at(failure, attempt=attempt, now=0.0, draw=0.5, elapsed=elapsed)


def test_a_programs_own_policy_says_when_to_stop_and_how_long_to_wait() -> None:
    given = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_exponential(max=60))
    assert [again(given, attempt=number) for number in (1, 2, 3)] == [1.0, 2.0, None]
    assert again(tenacity.stop_after_attempt(1)) is None
    assert again(tenacity.stop_after_delay(10), elapsed=11.0) is None
    assert 0 <= (again(tenacity.stop_after_delay(10), elapsed=9.0) or 0.0) <= 30


def test_its_condition_sees_the_code_and_a_permanent_failure_is_never_repeated() -> None:
    locked = tenacity.retry_if_exception(lambda error: getattr(error, "code", "") == "locked")
    given = tenacity.Retrying(retry=locked, wait=tenacity.wait_fixed(2))
    assert again(given) is None
    assert again(given, msgspec.structs.replace(OFFLINE, code="locked")) == 2.0
    assert again(tenacity.Retrying(), PERMANENT) is None


def test_a_policy_that_raises_or_waits_forever_ends_the_job_instead_of_leaving_it() -> None:
    def broken(state: tenacity.RetryCallState) -> float:
        raise RuntimeError("a bug of theirs")

    assert again(tenacity.Retrying(wait=broken)) is None
    assert again(tenacity.Retrying(wait=tenacity.wait_fixed(float("inf")))) is None
    assert again(tenacity.Retrying(wait=tenacity.wait_fixed(-5))) == 0.0


@pytest.mark.parametrize("given", [3, "3", tenacity.AsyncRetrying(), lambda: True])
def test_what_is_no_policy_is_a_type_error(given: object) -> None:
    with pytest.raises(TypeError, match=r"must be a tenacity\.Retrying or a stop condition"):
        given_policy(given)
