"""When to try again. Tenacity's `Retrying` decides, and nothing sleeps: the next attempt is a stored time."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from greenroom.actors.values import Failure

if TYPE_CHECKING:
    from tenacity import BaseRetrying, RetryCallState, Retrying
    from tenacity.stop import stop_base

    GivenRetry = BaseRetrying | stop_base
    """What a program says of retries."""


class AttemptFailed(Exception):
    """The failure that Tenacity's conditions get. `code` is a word such as `unreachable`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.code = failure.code


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, AttemptFailed) and error.failure.kind == "transient"


class RetryPolicy:
    """Transient failures are retried, after growing times with jitter."""

    def __init__(
        self, *, attempts: int, longest: float, most: float, first: float = 1.0, within: float = math.inf
    ) -> None:
        """Seconds, but for the number of attempts.

        `first` is waited after the first attempt, and twice as long after each other one, `most` at most; 0.5
        to 1.5 times that with the jitter, and `longest` at most. None begins after `within`.
        """
        self.longest = longest
        self._attempts, self._within = attempts, within
        self._first, self._most = first, most

    @cached_property
    def _retrying(self) -> Retrying:
        # Not quick to import, and only a failure needs it: commands that read the journal have none.
        from tenacity import (
            Retrying,
            retry_if_exception,
            stop_after_attempt,
            stop_after_delay,
            wait_exponential,
        )

        wait = wait_exponential(multiplier=self._first, max=self._most)

        def spread(state: RetryCallState) -> float:
            """Jobs that failed together do not retry together."""
            draw: float = state.kwargs["draw"]
            return min(wait(state) * (0.5 + draw), self.longest)

        stop = stop_after_attempt(self._attempts) | stop_after_delay(self._within)
        return Retrying(retry=retry_if_exception(_is_transient), stop=stop, wait=spread)

    def retry_at(
        self, failure: Failure, *, attempt: int, now: float, draw: float, elapsed: float = 0.0
    ) -> float | None:
        """When the attempt after `attempt`, which has failed, begins (wall clock); None when there is none.

        `elapsed`: seconds since the first attempt. `draw` in [0, 1) is the jitter.
        """
        from tenacity import DoSleep, RetryCallState, RetryError

        state = RetryCallState(self._retrying, fn=None, args=(), kwargs={"draw": draw})
        state.attempt_number = attempt
        error = AttemptFailed(failure)
        state.set_exception((type(error), error, None))
        state.start_time, state.outcome_timestamp = 0.0, elapsed
        self._retrying.begin()
        try:
            step = self._retrying.iter(state)
        except (RetryError, AttemptFailed):
            return None
        return now + step if isinstance(step, DoSleep) and step < math.inf else None

    def clamp(self, retry_at: float, now: float) -> float:
        """A stored `retry_at`, made sensible for a clock that may have jumped since."""
        return min(retry_at, now + self.longest)


class GivenPolicy(RetryPolicy):
    """Stops and waits as a program's own Tenacity object decides. Only its conditions are called: it never
    sleeps.
    """

    def __init__(self, given: BaseRetrying) -> None:
        super().__init__(attempts=1, longest=math.inf, most=0.0)
        self._given = given

    @cached_property
    def _retrying(self) -> Retrying:
        from tenacity import Retrying

        condition = self._given.retry

        def retries(state: RetryCallState) -> bool:
            """A permanent failure would repeat, whatever the condition says."""
            assert state.outcome is not None
            error = state.outcome.exception()
            return error is not None and _is_transient(error) and bool(condition(state))

        given = self._given
        return Retrying(retry=retries, stop=given.stop, wait=given.wait)

    def retry_at(
        self, failure: Failure, *, attempt: int, now: float, draw: float, elapsed: float = 0.0
    ) -> float | None:
        try:
            at = super().retry_at(failure, attempt=attempt, now=now, draw=draw, elapsed=elapsed)
        except Exception:  # noqa: BLE001 - theirs: without this, those who wait would never be answered
            return None
        return at if at is None else max(now, at)


def given_policy(given: object) -> RetryPolicy:
    """A policy from a `tenacity.Retrying`, or from a condition to stop, with our own times between attempts.

    Raises TypeError for anything else, also for an `AsyncRetrying`, whose conditions may have to be awaited.
    """
    from tenacity import AsyncRetrying, BaseRetrying, Retrying, wait_random_exponential
    from tenacity.stop import stop_base

    if isinstance(given, RetryPolicy):
        return given
    if isinstance(given, stop_base):
        return GivenPolicy(Retrying(stop=given, wait=wait_random_exponential(max=30.0)))
    if not isinstance(given, BaseRetrying) or isinstance(given, AsyncRetrying):
        kind = type(given).__name__
        raise TypeError(f"retry must be a tenacity.Retrying or a stop condition of Tenacity, not {kind}")
    return GivenPolicy(given)


INSTALL_RETRIES = RetryPolicy(attempts=5, most=30.0, longest=45.0)
PULL_RETRIES = RetryPolicy(attempts=6, most=60.0, longest=90.0)
"""Attempts are counted from the last one that brought anything."""
NO_NETWORK_AFTER = 8.0
CONTACT_RETRIES = RetryPolicy(attempts=3, within=NO_NETWORK_AFTER, first=0.5, most=60.0, longest=90.0)
"""For a source that has never answered while a client waits: without a network, the client learns so soon."""
PUSH_RETRIES = RetryPolicy(attempts=4, first=0.5, most=20.0, longest=30.0)
"""Attempts are counted from the last one that sent anything."""
