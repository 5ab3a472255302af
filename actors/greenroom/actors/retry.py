"""When to try again. Tenacity's `Retrying` decides, and nothing sleeps: the next attempt is a stored time."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from greenroom.actors.values import Failure

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying


class _AttemptFailed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, _AttemptFailed) and error.failure.kind == "transient"


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
        error = _AttemptFailed(failure)
        state.set_exception((type(error), error, None))
        state.start_time, state.outcome_timestamp = 0.0, elapsed
        self._retrying.begin()
        try:
            step = self._retrying.iter(state)
        except (RetryError, _AttemptFailed):
            return None
        return now + step if isinstance(step, DoSleep) else None

    def clamp(self, retry_at: float, now: float) -> float:
        """A stored `retry_at`, made sensible for a clock that may have jumped since."""
        return min(retry_at, now + self.longest)


INSTALL_RETRIES = RetryPolicy(attempts=5, most=30.0, longest=45.0)
PULL_RETRIES = RetryPolicy(attempts=6, most=60.0, longest=90.0)
"""Attempts are counted from the last one that brought anything."""
NO_NETWORK_AFTER = 8.0
CONTACT_RETRIES = RetryPolicy(attempts=3, within=NO_NETWORK_AFTER, first=0.5, most=60.0, longest=90.0)
"""For a source that has never answered while a client waits: without a network, the client learns so soon."""
PUSH_RETRIES = RetryPolicy(attempts=4, first=0.5, most=20.0, longest=30.0)
"""Attempts are counted from the last one that sent anything."""
