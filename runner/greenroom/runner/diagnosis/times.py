"""Moments as people write and read them: `10m`, `14:03`, `2026-11-22T10:00`."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta

from greenroom.runner.units import format_duration, parse_duration

_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?")
_EPOCH = re.compile(r"\d{9,}(?:\.\d+)?")
_DAYS = {"today": 0, "yesterday": 1}


def parse_time(text: str, now: float) -> float:
    """Wall-clock seconds from a time before now (`10m`, `2h30m`), a clock time, a date, or both.

    A clock time is the last one that has passed. A date without a time is its first moment. Without a zone
    the machine's own is meant. Raises ValueError.
    """
    text = text.strip()
    if text == "now":
        return now
    if text in _DAYS:
        midnight = datetime.fromtimestamp(now).astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        return (midnight - timedelta(days=_DAYS[text])).timestamp()
    if match := _CLOCK.fullmatch(text):
        return _last(int(match[1]), int(match[2]), float(match[3] or 0), now, text)
    if _EPOCH.fullmatch(text):
        return float(text)
    # What has only digits could be anything; a duration has a unit.
    if text and not text.replace(".", "").isdigit():
        try:
            return now - parse_duration(text)
        except ValueError:
            pass
        try:
            # Python's reader takes a date and a time in every form of ISO 8601 (docs.python.org, 3.11).
            return datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"{text!r} is not a time; write 10m (ago), 14:03, 2026-11-22 or 2026-11-22T10:00")


def _last(hour: int, minute: int, second: float, now: float, text: str) -> float:
    if hour > 23 or minute > 59 or second >= 60:
        raise ValueError(f"{text!r} is not a time of day")
    today = datetime.fromtimestamp(now).astimezone()
    at = today.replace(hour=hour, minute=minute, second=0, microsecond=0).timestamp() + second
    return at if at <= now else at - 86_400


def clock(at: float, now: float) -> str:
    """`14:03:12`, with the date when that is another day than `now`'s."""
    then = time.localtime(at)
    same = then[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M:%S", then)


def moment(at: float, now: float) -> str:
    """`14:03:12 (5m ago)`, `14:30:00 (in 25m)`; for what a sentence is about."""
    distance = now - at
    if abs(distance) < 1:
        return f"{clock(at, now)} (just now)"
    ago = format_duration(round(abs(distance)))
    return f"{clock(at, now)} ({ago} ago)" if distance > 0 else f"{clock(at, now)} (in {ago})"


def precise(at: float) -> str:
    """`2026-11-22 14:03:12.345`."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}.{int(at % 1 * 1000):03d}"
