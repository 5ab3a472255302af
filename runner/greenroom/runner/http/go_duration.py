"""Durations as Go writes them: `5m0s`, `1h30m0s`, `-1` (forever). They are part of the wire contract."""

from __future__ import annotations

import re

from greenroom.actors.limits import DURATION, escaped

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 100
"""Characters of a duration."""
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def parse_go_duration(text: str) -> float:
    """Seconds; -1 for any negative one, which means forever. Raises ValueError, above ten years too."""
    if text == "0":
        return 0.0
    if text == "-1":
        return -1.0
    body = text[1:] if text[:1] in ("-", "+") else text
    parts = list(_PART.finditer(body)) if len(body) <= _LONGEST else []
    if not parts or "".join(part.group() for part in parts) != body:
        raise ValueError(f'"{escaped(text, 40)}" is not a duration; write 5m, 1h30m, 0, or -1 (forever)')
    if text.startswith("-"):
        return -1.0
    return _bounded(sum(float(part[1]) * _UNITS[part[2]] for part in parts))


def keep_alive_of(wish: str | float) -> float:
    """Seconds of a request's keep-alive: seconds or a duration; -1: forever. Raises ValueError."""
    if isinstance(wish, str):
        return parse_go_duration(wish)
    return _bounded(float(wish)) if wish >= 0 else -1.0


def _bounded(seconds: float) -> float:
    if not seconds <= DURATION:
        raise ValueError("more than ten years; write -1 (forever)")
    return seconds


def go_duration(seconds: float) -> str:
    """As Go prints it; `-1` is forever."""
    if seconds < 0:
        return "-1"
    if seconds < 1:
        return f"{round(seconds * 1000)}ms" if seconds else "0s"
    whole, fraction = divmod(round(seconds, 3), 1)
    hours, rest = divmod(int(whole), 3600)
    minutes, rest = divmod(rest, 60)
    last = f"{rest + fraction:.3f}".rstrip("0").rstrip(".")
    if hours:
        return f"{hours}h{minutes}m{last}s"
    return f"{minutes}m{last}s" if minutes else f"{last}s"
