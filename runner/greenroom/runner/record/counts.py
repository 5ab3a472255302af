"""How many tokens an engine says it read and wrote, found in the last bytes of its answer.

Engines tell it at the end of a stream, and at one end of a whole answer. Nothing is added to a request for
it: llama.cpp tells `timings` in any case, others only what a client asked for.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_TIMINGS = re.compile(rb'"timings"\s*:\s*(?=\{)')
"""Unescaped quotes: inside the text of an answer, they would be escaped."""
_READ = 16_384
"""Bytes that such an object is read from at most."""
_MOST = 10**9
_decode = json.JSONDecoder().raw_decode


class Counts(NamedTuple):
    """None: not told."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    per_second: float | None = None


def counts_of(head: bytes, before: bytes, last: bytes) -> Counts:
    """What an answer tells: `head` is its beginning, `before` and `last` are its last two pieces."""
    tail = before + last
    usage = _object(_USAGE, tail) or _object(_USAGE, head)
    timings = _object(_TIMINGS, tail) or _object(_TIMINGS, head)
    read, written = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if read is None and (fresh := _count(timings, "prompt_n")) is not None:
        read = fresh + (_count(timings, "cache_n") or 0)
    if written is None:
        written = _count(timings, "predicted_n")
    speed = timings.get("predicted_per_second")
    if not isinstance(speed, int | float) or not 0 < speed < _MOST or (written or 0) < 2:
        speed = None
    return Counts(read, written, speed)


def _object(pattern: re.Pattern[bytes], data: bytes) -> dict[str, Any]:
    """The last object of that name; empty where there is none that can be read."""
    at = -1
    for match in pattern.finditer(data):
        at = match.end()
    if at < 0:
        return {}
    try:
        found, _ = _decode(data[at : at + _READ].decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(told: dict[str, Any], name: str) -> int | None:
    value = told.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST else None
