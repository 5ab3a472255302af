"""Finds the token counts in an engine's response.

They are at the end of a stream, and at the beginning or the end of a response in one piece. Requests are not
changed to get them: llama.cpp always sends `timings`, other engines only the `usage` that a client asked for.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_TIMINGS = re.compile(rb'"timings"\s*:\s*(?=\{)')
"""In generated text, these quotes would be escaped."""
_READ = 16_384
"""Maximum bytes of such an object."""
_MOST = 10**9
_decode = json.JSONDecoder().raw_decode


class Counts(NamedTuple):
    """None: the engine did not report it."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    per_second: float | None = None
    cached: int | None = None
    """Of `tokens_in`: those that the engine had read before."""


def counts_of(head: bytes, before: bytes, last: bytes) -> Counts:
    """The counts in a response: `head` is its beginning, `before` and `last` are its last two pieces."""
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
    cached = _count(timings, "cache_n")
    if cached is None and isinstance(details := usage.get("prompt_tokens_details"), dict):
        cached = _count(details, "cached_tokens")
    return Counts(read, written, speed, cached)


def _object(pattern: re.Pattern[bytes], data: bytes) -> dict[str, Any]:
    """The last object of that name; empty if there is none, or it cannot be parsed."""
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
