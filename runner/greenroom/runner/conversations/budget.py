"""How many bytes saved conversations may take, and how many may be written a day: a disk wears."""

from __future__ import annotations

import shutil

import msgspec

from greenroom.runner.config import Settings

MOST = 10_000_000_000
"""Bytes kept unless configured otherwise: this, or a tenth of what is free, if that is less."""
DAILY = 10
"""Times the bytes kept may be written in 24 hours, unless configured otherwise."""
_HOUR = 3_600.0
_HOURS = 24


def default_cache(free: int, kept: int) -> int:
    """Bytes that may be kept on a disk with so many free, of which so many are kept already."""
    return min(MOST, max(free + kept, 0) // 10)


def cache_budget(settings: Settings, kept: int) -> int:
    """Bytes that may be kept, of which so many are kept already. Raises OSError."""
    if settings.conversation_cache is not None:
        return settings.conversation_cache
    return default_cache(shutil.disk_usage(settings.home).free, kept)


def off(settings: Settings) -> str:
    """Why nothing is saved on the disk by these settings; "" if it is."""
    if settings.conversations != "disk":
        return f'the setting conversations is "{settings.conversations}"'
    return "the setting conversation_cache is 0" if settings.conversation_cache == 0 else ""


class Written(msgspec.Struct, frozen=True):
    """Bytes written, by the hour since the epoch; only of the last 24."""

    hours: dict[int, int] = {}

    def plus(self, size: int, now: float) -> Written:
        hour = int(now // _HOUR)
        hours = {key: count for key, count in self.hours.items() if hour - _HOURS < key <= hour}
        return Written({**hours, hour: hours.get(hour, 0) + size})

    def today(self, now: float) -> int:
        """Bytes of the last 24 hours; hours that lie ahead, since the clock was wrong, do not count."""
        hour = int(now // _HOUR)
        return sum(count for key, count in self.hours.items() if hour - _HOURS < key <= hour)
