"""When to try again: tenacity's policies used as pure functions, since nobody sleeps in a handler."""

from __future__ import annotations

from tenacity import RetryCallState, stop_after_attempt, wait_exponential
from tenacity.stop import stop_base
from tenacity.wait import wait_base


class RetryPolicy:
    """How many attempts, and how long between them."""

    def __init__(self, stop: stop_base, wait: wait_base, longest: float) -> None:
        """`longest` bounds a wait in seconds, also one read from a journal after the clock has jumped."""
        self._stop = stop
        self._wait = wait
        self.longest = longest

    def retry_at(self, attempt: int, now: float, draw: float) -> float | None:
        """When attempt `attempt + 1` begins (wall clock), or None when there is none.

        `draw` in [0, 1) is the jitter: callers that failed together do not come back together.
        """
        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        state.attempt_number = attempt
        if self._stop(state):
            return None
        return now + min(self._wait(state) * (0.5 + draw), self.longest)

    def clamp(self, retry_at: float, now: float) -> float:
        """A stored `retry_at`, made sensible for a clock that may have jumped since."""
        return min(retry_at, now + self.longest)


INSTALL_RETRIES = RetryPolicy(stop_after_attempt(5), wait_exponential(multiplier=1, max=30), longest=45.0)
PULL_RETRIES = RetryPolicy(stop_after_attempt(6), wait_exponential(multiplier=1, max=60), longest=90.0)
"""Attempts are counted from the last one that has brought anything."""
CONTACT_RETRIES = RetryPolicy(stop_after_attempt(3), wait_exponential(multiplier=0.5, max=60), longest=90.0)
"""For a source that has not even said what it has: without a network the answer comes within seconds."""
NO_NETWORK_AFTER = 8.0
"""Seconds after which a source that has never answered is not knocked at again, if somebody waits."""
PUSH_RETRIES = RetryPolicy(stop_after_attempt(4), wait_exponential(multiplier=0.5, max=20), longest=30.0)
"""Attempts are counted from the last one that got on."""
