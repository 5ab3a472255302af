"""Parses and formats durations and sizes: `5m`, `1h30m`, `10MiB`, `93.2 MB`."""

from __future__ import annotations

import re

from greenroom.actors.sizes import format_size

__all__ = [
    "FOREVER",
    "LARGEST",
    "LONGEST",
    "format_duration",
    "format_size",
    "parse_duration",
    "parse_keep_alive",
    "parse_size",
]

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")
_SIZES = {
    "": 1,
    "b": 1,
    **{f"{letter}ib": 2 ** (10 * power) for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": 10 ** (3 * power) for power, letter in enumerate("kmgt", 1)},
    # A bare letter is usual for memory, where powers of two are meant.
    **{letter: 2 ** (10 * power) for power, letter in enumerate("kmgt", 1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)

LONGEST = 10 * 365 * 86_400.0
"""Maximum seconds: ten years, as in `actors.limits`, which is too slow to import for a command."""
LARGEST = 2**60
"""Maximum bytes of a size."""
_SHOWN = 60
"""Characters of invalid input to repeat."""
FOREVER = -1.0
"""The keep-alive of a model that is never unloaded for being idle."""


def parse_duration(text: object) -> float:
    """Seconds from `90`, `90s`, `5m`, `1h30m`, `500ms`; never negative. Raises ValueError or TypeError."""
    if isinstance(text, bool) or not isinstance(text, (int, float, str)):
        raise TypeError(_not_a_duration(text))
    # Compared before conversion: an integer may be too large for a float.
    seconds = _duration_from_text(text.strip()) if isinstance(text, str) else text
    if not 0 <= seconds < float("inf"):
        raise ValueError(_not_a_duration(text))
    if seconds > LONGEST:
        raise ValueError(f"{_shown(text)} is more than ten years")
    return float(seconds)


def parse_keep_alive(text: object) -> float:
    """Like `parse_duration`; `forever` and anything negative mean FOREVER."""
    if isinstance(text, str):
        word = text.strip().lower()
        if word in ("forever", "inf", "infinite"):
            return FOREVER
        if word.startswith("-"):
            parse_duration(word[1:])
            return FOREVER
    elif not isinstance(text, bool) and isinstance(text, int | float) and text < 0:
        return FOREVER
    return parse_duration(text)


def parse_size(text: str | int) -> int:
    """Bytes from `1048576`, `10MiB`, `10M` (the same), `8GB` (thousands), `1.5 GiB`. Raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    else:
        match = _SIZE.fullmatch(str(text).strip()[:_SHOWN])
        unit = _SIZES.get(match[2].lower()) if match else None
        if match is None or unit is None or (unit == 1 and "." in match[1]):
            raise ValueError(f"{_shown(text)} is not a size; write 500MB, 8GB or a number of bytes")
        size = int(float(match[1]) * unit)
    if size < 0:
        raise ValueError(f"{_shown(text)} is negative; sizes are not")
    if size > LARGEST:
        raise ValueError(f"{_shown(text)} is too large; write 500MB, 8GB or a smaller number of bytes")
    return size


def format_duration(seconds: float) -> str:
    """`forever`, `0.3ms`, `45ms`, `0.46s`, `1.2s`, `42s`, `5m`, `1h30m`, `2d3h`: at most two units."""
    if seconds < 0:
        return "forever"
    if 0 < seconds < 0.1:
        return f"{round(seconds * 1000, 1 if seconds < 0.01 else None):g}ms"
    if seconds < 10:
        return f"{round(seconds, 2 if seconds < 1 else 1):g}s"
    rest = round(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return "".join(parts[:2])


def _duration_from_text(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    matches = list(_DURATION.finditer(text)) if len(text) <= _SHOWN else []
    if not matches or "".join(match[0] for match in matches) != text:
        raise ValueError(_not_a_duration(text))
    return sum(float(match[1]) * _UNITS[match[2]] for match in matches)


def _not_a_duration(text: object) -> str:
    return f"{_shown(text)} is not a duration; write 90s, 5m, 1h30m or a number of seconds"


def _shown(text: object) -> str:
    if isinstance(text, int) and abs(text) > LARGEST:
        return "that number"  # Python refuses to print very long ones
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"


def size_text(size: int) -> str:
    """Bytes in powers of 1024, as Docker Model Runner sends them: `93.81MiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.2f}{unit}" if unit != "B" else f"{size}B"
        value /= 1024
    return f"{value:.2f}TiB"
