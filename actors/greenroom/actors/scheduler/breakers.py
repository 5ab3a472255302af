"""How long a model is left alone after loads that failed.

Failures that count against the model open a breaker, which is stored. A full disk or a full process table
says nothing about a model, so it opens no breaker and quarantines nothing. But each try costs events, so
there is a pause that grows from a second to a minute. It is not stored: the machine may be well again after
a restart.
"""

from __future__ import annotations

from collections.abc import Mapping

from greenroom.actors.bounded_maps import remembered
from greenroom.actors.scheduler.state import Setback, breaker_key
from greenroom.actors.values import EngineSpec, Failure

FAILURES_TO_OPEN = 3
LONGEST_COOL_DOWN = 300.0
SPARED = 2
"""Loads in a row that may be lost, through no fault of theirs, before the next one has to wait."""
FIRST_COOL_DOWN = 10.0
_LONGEST_PAUSE = 60.0
_FORGOTTEN_AFTER = 300.0
_REMEMBERED = 64


def cool_down(failures: int) -> float:
    """Seconds before the next try: doubling, bounded."""
    return min(LONGEST_COOL_DOWN, FIRST_COOL_DOWN * 2.0 ** min(failures - FAILURES_TO_OPEN, 10))


def breaker_of(spec: EngineSpec) -> str:
    return breaker_key(spec.model_id, spec.backend, spec.installation_id)


def setbacks_after(
    before: Mapping[str, Setback], spec: EngineSpec, failure: Failure, now: float, *, spared: int = 0
) -> dict[str, Setback]:
    """With this failure; `now` is the monotonic second. The first `spared` in a row cost no pause."""
    key = breaker_of(spec)
    old = before.get(key)
    count = old.count + 1 if old is not None and now - old.at < _FORGOTTEN_AFTER else 1
    pause = min(_LONGEST_PAUSE, 2.0 ** (min(count - spared, 10) - 1)) if count > spared else 0.0
    return remembered(before, key, Setback(failure=failure, count=count, pause=pause, at=now), _REMEMBERED)


def pause_left(before: Mapping[str, Setback], key: str, now: float) -> float:
    """Seconds until a load may be tried again; 0.0 when now."""
    one = before.get(key)
    return max(0.0, one.at + one.pause - now) if one is not None else 0.0
