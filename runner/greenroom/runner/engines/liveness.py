"""Judges from observations whether an engine still works; pure.

It must be replaced when

1. a signal has stopped it, or nothing listens on its socket any more: at once;
2. a request is inside (or the last client left without an answer, or no request is inside and the health path
   is silent), and for `limit` seconds it sent no byte, its counters stood still, it did not answer our own
   request, and it used neither processor nor graphics time;
3. the same, but it used the processor: after several times its longest possible batch. Processor time alone
   does not prove work, and where a graphics processor cannot be measured, missing processor time does not
   prove idleness;
4. its last client has left, and it has used a processor without a pause since, for longer than the batch
   takes after which it should have noticed; no other request is inside, or none has had an answer. Some
   schemas keep llama.cpp at work for hours.

A batch of minutes is work, an engine under a debugger is left alone, and time without monitoring does not
count.
"""

from __future__ import annotations

import re
from typing import Literal

from greenroom.actors.gates import GateReading
from greenroom.actors.values import Blame, Failure
from greenroom.runner.engines.handle import CPU_SHARE

LIMIT = 12.0
"""Seconds without any sign of work after which an engine is given up."""
ASK_AFTER = 1 / 3
"""Share of that limit after which it is asked for one token."""
BATCHES = 5.0
"""An engine at work may be silent for this many times its longest batch."""
UNKNOWN_BATCH = 120.0
"""Seconds a batch may take while the engine's speed is unknown."""
DARK_BATCH = 24.0
"""The same for an engine that may compute where it cannot be measured: such processors are fast."""
AT_WORK_IN_VAIN = 30.0
"""Seconds for which an engine whose speed is unknown may go on computing after its last client has left."""
_BUSY = 0.05
"""Of one core; an engine that rests when it is idle uses less, also while it is asked for its health."""
DEFAULT_BATCH = 2048
"""Tokens llama.cpp computes at once unless its command line says otherwise."""

_IN_VAIN = 1.0
"""Seconds after which a client that leaves without an answer is a reason to ask the engine ourselves."""

_PROMPT_TOKENS = re.compile(rb"^llamacpp:prompt_tokens_total (\S+)", re.MULTILINE)
_PROMPT_SECONDS = re.compile(rb"^llamacpp:prompt_seconds_total (\S+)", re.MULTILINE)


class EngineObservations:
    """Observations of one engine. Times are monotonic seconds."""

    def __init__(self, now: float, batch: int = 0) -> None:
        """`batch`: tokens it computes at once at most; 0 if unknown."""
        self._batch = batch or DEFAULT_BATCH
        self.cpu = -1.0
        self.looked_at = now
        self.worked_at = now
        """When it was last seen to use a processor."""
        self.proved_at = now
        """When it last answered us, or its counters last moved."""
        self.longest = 0.0
        """Longest silence, in seconds, that ended with work done."""
        self.reckoned = 0.0
        """Longest batch, in seconds, estimated from its speed; 0 if unknown."""
        self._counters = b""
        self._counted_at = -1.0
        self._quiet_since = 0.0
        self._busy_since = 0.0
        """Since when it has used a processor whenever it was looked at; 0 if it did not, the last time."""
        self.due = False
        """It must prove that it works, even without requests."""

    def excuse(self, now: float) -> None:
        """There was no monitoring for a while: restart all times."""
        self.worked_at = self.proved_at = self.looked_at = now
        self.cpu = -1.0
        self._busy_since = 0.0

    def use(self, cpu: float, now: float) -> None:
        """Record its total processor time. When a process of its group ends, the total falls: that counts
        as work.
        """
        used, elapsed = cpu - self.cpu, now - self.looked_at
        if self.cpu < 0 or used < 0 or used > CPU_SHARE * elapsed:
            self.worked_at = now
        if self.cpu < 0 or used < _BUSY * elapsed:
            self._busy_since = 0.0
        elif not self._busy_since:
            self._busy_since = self.looked_at
        self.cpu, self.looked_at = cpu, now

    def read(self, reading: GateReading) -> None:
        """Record since when nothing has come out: a silence that ended with a byte was work."""
        came = reading.quiet_since > self._quiet_since and not reading.unanswered_since
        if came and reading.inside and self._quiet_since:
            self.longest = max(self.longest, reading.quiet_since - self._quiet_since)
        self._quiet_since = reading.quiet_since if reading.inside else 0.0

    def count(self, told: bytes, now: float, since: float) -> None:
        """Record its counters in a silence that began at `since`: a change proves that it works."""
        if self._counted_at >= since and told != self._counters:
            self.longest = max(self.longest, now - since)
            self.proved_at = now
        self._counters, self._counted_at = told, now
        tokens, seconds = _number(_PROMPT_TOKENS, told), _number(_PROMPT_SECONDS, told)
        if tokens > 0 and seconds > 0:
            self.reckoned = max(self.reckoned, self._batch * seconds / tokens)

    def prove(self, now: float) -> None:
        """It has answered a request that requires computing."""
        self.proved_at, self.due = now, False

    def is_asked(self, reading: GateReading) -> bool:
        """Whether it should be working: for requests inside, or for clients that waited and left without an
        answer.
        """
        waited = reading.left_at - reading.unanswered_since if reading.unanswered_since else 0.0
        in_vain = waited >= _IN_VAIN and self.proved_at <= reading.left_at
        return bool(reading.inside or in_vain or self.due or self.is_doubted(reading))

    def is_doubted(self, reading: GateReading) -> bool:
        """Whether the front door received an invalid response since it last proved itself."""
        return reading.doubted_at > self.proved_at

    def quiet_for(self, reading: GateReading, now: float) -> float:
        """Seconds without output although there is work."""
        if not self.is_asked(reading):
            return 0.0
        since = 0.0 if self.due else reading.unanswered_since or reading.quiet_since
        if self.is_doubted(reading) and not reading.inside:
            since = reading.doubted_at
        return now - max(since, self.proved_at)

    def still_for(self, reading: GateReading, now: float) -> float:
        """Seconds without output or activity although there is work."""
        return min(self.quiet_for(reading, now), now - self.worked_at)

    def at_work_in_vain(self, reading: GateReading, now: float) -> float:
        """Seconds for which it has computed for a client that has left, without a pause."""
        if not reading.left_at or not self._busy_since:
            return 0.0
        since = max(reading.left_at, self._busy_since)
        if reading.inside:
            if not 0 < reading.unanswered_since < reading.left_at:
                return 0.0
            since = max(since, self.proved_at)
        return now - since

    def patience_in_vain(self, reading: GateReading, limit: float) -> float:
        """Seconds for which it may do so; twice as long with others inside: it may compute for them."""
        return max(limit, 2 * self._longest_batch(AT_WORK_IN_VAIN / 2)) * (2 if reading.inside else 1)

    def patience(self, limit: float) -> float:
        """Seconds for which it may be silent while it is at work."""
        return max(limit, BATCHES * self._longest_batch(UNKNOWN_BATCH))

    def patience_in_the_dark(self, limit: float) -> float:
        """The same where its work cannot be measured."""
        return max(limit, BATCHES * self._longest_batch(DARK_BATCH))

    def _longest_batch(self, unknown: float) -> float:
        return max(self.longest, self.reckoned or unknown)


def _number(pattern: re.Pattern[bytes], told: bytes) -> float:
    found = pattern.search(told)
    try:
        return float(found[1]) if found else 0.0
    except ValueError:
        return 0.0


def _failure(
    kind: Literal["transient", "permanent"], code: str, message: str, blame: Blame, advice: str = ""
) -> Failure:
    return Failure(kind=kind, code=code, message=message, blame=blame, advice=advice)


HALTED = _failure(
    "transient", "engine_halted", "its process was stopped by a signal from outside (SIGSTOP)", "machine"
)
SOCKET_GONE = _failure(
    "transient",
    "engine_unreachable",
    "its socket file is gone, so it could not be reached",
    "machine",
    advice="Keep programs that clean up temporary files away from Greenroom's folders.",
)
CLOSED = _failure(
    "permanent", "engine_closed", "it refused connections although its process was alive", "engine"
)
SOCKET_TAKEN = _failure(
    "transient", "engine_unreachable", "another process listened on its socket", "machine"
)
GARBLED = _failure("permanent", "engine_garbled", "its answers were not HTTP", "engine")


def abandoned(seconds: float) -> Failure:
    return _failure(
        "transient",
        "engine_abandoned",
        f"it went on computing for {seconds:.0f}s for a client that had left",
        "client",
        advice="Some JSON schemas and grammars keep an engine busy for hours: use simpler ones.",
    )


def stalled(reason: str) -> Failure:
    return _failure("permanent", "engine_stalled", reason, "engine")
