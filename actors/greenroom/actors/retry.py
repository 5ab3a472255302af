"""When to try again. Tenacity's `Retrying` decides, and nothing sleeps: the next attempt is a stored time."""

from __future__ import annotations

from tenacity import (
    DoSleep,
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
)
from tenacity.stop import stop_base
from tenacity.wait import wait_base, wait_exponential

from greenroom.actors.values import Failure


class _AttemptFailed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, _AttemptFailed) and error.failure.kind == "transient"


class _spread(wait_base):  # noqa: N801 - named like the waits of tenacity
    """Another wait times 0.5 to 1.5, so that jobs that failed together do not retry together."""

    def __init__(self, wait: wait_base, longest: float) -> None:
        self._wait = wait
        self._longest = longest

    def __call__(self, retry_state: RetryCallState) -> float:
        draw: float = retry_state.kwargs["draw"]
        return min(self._wait(retry_state) * (0.5 + draw), self._longest)


class RetryPolicy:
    """Transient failures are retried until `stop`, after `wait` with jitter, at most `longest` seconds."""

    def __init__(self, *, stop: stop_base, wait: wait_base, longest: float) -> None:
        self.longest = longest
        self._retrying = Retrying(
            retry=retry_if_exception(_is_transient), stop=stop, wait=_spread(wait, longest)
        )

    def retry_at(
        self, failure: Failure, *, attempt: int, now: float, draw: float, elapsed: float = 0.0
    ) -> float | None:
        """When the attempt after `attempt`, which has failed, begins (wall clock); None when there is none.

        `elapsed`: seconds since the first attempt. `draw` in [0, 1) is the jitter.
        """
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


INSTALL_RETRIES = RetryPolicy(stop=stop_after_attempt(5), wait=wait_exponential(max=30), longest=45.0)
PULL_RETRIES = RetryPolicy(stop=stop_after_attempt(6), wait=wait_exponential(max=60), longest=90.0)
"""Attempts are counted from the last one that brought anything."""
NO_NETWORK_AFTER = 8.0
CONTACT_RETRIES = RetryPolicy(
    stop=stop_after_attempt(3) | stop_after_delay(NO_NETWORK_AFTER),
    wait=wait_exponential(multiplier=0.5, max=60),
    longest=90.0,
)
"""For a source that has never answered while a client waits: without a network, the client learns so soon."""
PUSH_RETRIES = RetryPolicy(
    stop=stop_after_attempt(4), wait=wait_exponential(multiplier=0.5, max=20), longest=30.0
)
"""Attempts are counted from the last one that sent anything."""
