"""Judges whether an engine still works; pure, over what was observed of it.

It has to be replaced when

1. a signal has stopped it, or nothing listens on its socket any more: at once;
2. a request is inside (or the last client left without an answer, or no request is inside and the health path
   is silent), and for `limit` seconds it sent no byte, its counters stood still, it did not answer our own
   question, and it used neither processor nor graphics time;
3. the same, but it used the processor: after several times the longest batch it may compute. Processor time
   alone does not prove work, and where a graphics processor cannot be measured, missing processor time does
   not prove idleness.

A batch of minutes is work, an engine under a debugger is left alone, and time in which we did not watch does
not count.
"""

from __future__ import annotations

import re

from greenroom.actors.gates import GateReading
from greenroom.actors.values import Failure
from greenroom.runner.engines.readiness import CPU_SHARE

LIMIT = 12.0
"""Seconds without any sign of work after which an engine is given up."""
ASK_AFTER = 1 / 3
"""Share of that limit after which it is asked for one token."""
BATCHES = 5.0
"""An engine at work may be silent for so many times the longest batch."""
UNKNOWN_BATCH = 120.0
"""Seconds a batch may take when none was seen yet and the engine's speed is not known."""
DARK_BATCH = 24.0
"""The same for an engine that may compute where it cannot be measured: such processors are fast."""
DEFAULT_BATCH = 2048
"""Tokens llama.cpp computes at once unless its command line says otherwise."""

_IN_VAIN = 1.0
"""A client that leaves without an answer after so many seconds is a reason to ask the engine ourselves."""

_PROMPT_TOKENS = re.compile(rb"^llamacpp:prompt_tokens_total (\S+)", re.MULTILINE)
_PROMPT_SECONDS = re.compile(rb"^llamacpp:prompt_seconds_total (\S+)", re.MULTILINE)


class Life:
    """What was seen of one engine. Times are monotonic seconds."""

    def __init__(self, now: float, batch: int = 0) -> None:
        """`batch` are the tokens it computes at once at most; 0 is not known."""
        self._batch = batch or DEFAULT_BATCH
        self.cpu = -1.0
        self.looked_at = now
        self.worked_at = now
        """It was last seen to use a processor."""
        self.proved_at = now
        """It has last answered us, or its counters moved."""
        self.longest = 0.0
        """Seconds: the longest silence seen that ended with work done."""
        self.reckoned = 0.0
        """Seconds: the longest batch it may compute, by its speed; 0 while that is not known."""
        self._counters = b""
        self._counted_at = -1.0
        self._quiet_since = 0.0
        self.due = False
        """It must prove that it works, whether or not anybody asks."""

    def excuse(self, now: float) -> None:
        """We did not watch for a while: start all times again."""
        self.worked_at = self.proved_at = self.looked_at = now
        self.cpu = -1.0

    def use(self, cpu: float, now: float) -> None:
        """Take in the processor time it has used in all. A member that has gone makes that less: it moved."""
        used, elapsed = cpu - self.cpu, now - self.looked_at
        if self.cpu < 0 or used < 0 or used > CPU_SHARE * elapsed:
            self.worked_at = now
        self.cpu, self.looked_at = cpu, now

    def read(self, reading: GateReading) -> None:
        """Take in since when nothing has come out: a silence that ended with a byte was work."""
        came = reading.quiet_since > self._quiet_since and not reading.unanswered_since
        if came and reading.inside and self._quiet_since:
            self.longest = max(self.longest, reading.quiet_since - self._quiet_since)
        self._quiet_since = reading.quiet_since if reading.inside else 0.0

    def count(self, told: bytes, now: float, since: float) -> None:
        """Take in its counters in a silence that began at `since`: a change proves that it works.

        Only against an earlier reading of the same silence: the first one may differ from one of an hour ago.
        """
        if self._counted_at >= since and told != self._counters:
            self.longest = max(self.longest, now - since)
            self.proved_at = now
        self._counters, self._counted_at = told, now
        tokens, seconds = _number(_PROMPT_TOKENS, told), _number(_PROMPT_SECONDS, told)
        if tokens > 0 and seconds > 0:
            self.reckoned = max(self.reckoned, self._batch * seconds / tokens)

    def prove(self, now: float) -> None:
        """It has answered a question that must be computed."""
        self.proved_at, self.due = now, False

    def is_asked(self, reading: GateReading) -> bool:
        """Whether there is anything it should be doing: for those inside, or for those who have left with
        nothing after they had waited for it.
        """
        waited = reading.left_at - reading.unanswered_since if reading.unanswered_since else 0.0
        in_vain = waited >= _IN_VAIN and self.proved_at <= reading.left_at
        return bool(reading.inside or in_vain or self.due or self.is_doubted(reading))

    def is_doubted(self, reading: GateReading) -> bool:
        """Whether the front door got what is no answer, and it has not proved itself since."""
        return reading.doubted_at > self.proved_at

    def quiet_for(self, reading: GateReading, now: float) -> float:
        """Seconds for which it has told nothing, though it is asked."""
        if not self.is_asked(reading):
            return 0.0
        since = 0.0 if self.due else reading.unanswered_since or reading.quiet_since
        if self.is_doubted(reading) and not reading.inside:
            since = reading.doubted_at
        return now - max(since, self.proved_at)

    def still_for(self, reading: GateReading, now: float) -> float:
        """Seconds for which it has neither told nor done anything, though it is asked."""
        return min(self.quiet_for(reading, now), now - self.worked_at)

    def patience(self, limit: float) -> float:
        """Seconds for which it may be quiet while it is at work."""
        return max(limit, BATCHES * self._longest_batch(UNKNOWN_BATCH))

    def patience_in_the_dark(self, limit: float) -> float:
        """The same where it may be at work without our seeing it."""
        return max(limit, BATCHES * self._longest_batch(DARK_BATCH))

    def _longest_batch(self, unknown: float) -> float:
        return max(self.longest, self.reckoned or unknown)


def _number(pattern: re.Pattern[bytes], told: bytes) -> float:
    found = pattern.search(told)
    try:
        return float(found[1]) if found else 0.0
    except ValueError:
        return 0.0


# what is told


def halted(number: str = "SIGSTOP") -> Failure:
    """A signal from outside has stopped its process."""
    return Failure(
        kind="transient",
        code="engine_halted",
        message=f"its process was stopped by a signal from outside ({number})",
        blame="machine",
    )


def unreachable() -> Failure:
    """Its socket file is gone: no client can connect to it again."""
    return Failure(
        kind="transient",
        code="engine_unreachable",
        message="its socket file is gone, so it could not be reached",
        advice="Keep programs that clean up temporary files away from Greenroom's folders.",
        blame="machine",
    )


def closed() -> Failure:
    """It is alive but no longer listens."""
    return Failure(
        kind="permanent",
        code="engine_closed",
        message="it refused connections although its process was alive",
        blame="engine",
    )


def replaced() -> Failure:
    """Another process listens where it should."""
    return Failure(
        kind="transient",
        code="engine_unreachable",
        message="another process listened on its socket",
        blame="machine",
    )


def garbled() -> Failure:
    """Its answers are not HTTP."""
    return Failure(
        kind="permanent", code="engine_garbled", message="its answers were not HTTP", blame="engine"
    )


def stalled(reason: str) -> Failure:
    """It hangs, or works without a result."""
    return Failure(kind="permanent", code="engine_stalled", message=reason, blame="engine")
