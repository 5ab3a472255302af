"""What has changed about a model's configuration, or about a graphics device, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from greenroom.runner.diagnosis.explanation import counted
from greenroom.runner.units import format_duration, format_size

Fields = Mapping[str, Any]


def config_parts(fields: Fields, before: Fields) -> list[str]:
    """What a change of a model's configuration sets, with the values that were set `before`."""
    parts = []
    for name, tell in _SETTINGS.items():
        value, old = fields.get(name), before.get(name)
        was = f" instead of {_BEFORE.get(name, tell)(old)}" if old is not None and old != value else ""
        if value is not None:
            parts.append(f"{tell(value)}{was}")
        elif name in (fields.get("reset") or ()):
            parts.append(f"the default {name.replace('_', ' ')}{was}")
    return parts


_BEFORE: Mapping[str, Callable[[Any], str]] = {
    "context_size": str,
    "slots": lambda slots: str(slots or "as many as fit"),
    "keep_alive": lambda seconds: format_duration(seconds) if seconds >= 0 else "an unlimited one",
}
"""How these are called behind a new value."""
_SETTINGS: Mapping[str, Callable[[Any], str]] = {
    "context_size": lambda tokens: f"a context of {tokens} tokens",
    "flags": lambda flags: f"the flags {' '.join(flags)}" if flags else "no flags",
    "keep_alive": lambda seconds: (
        "an unlimited keep-alive" if seconds < 0 else f"a keep-alive of {format_duration(float(seconds))}"
    ),
    "slots": lambda slots: counted(int(slots), "slot") if slots else "as many slots as fit",
    "prompt_cache": lambda size: (
        f"a prompt cache of {format_size(size)}" if size >= 0 else "the usual prompt cache"
    ),
    "require_device": lambda must: "graphics devices required" if must else "graphics devices not required",
}


def device_change(before: Fields | None, after: Fields) -> str:
    """What is new about one graphics device, as a sentence."""
    name, problem = after["name"], after.get("problem")
    if problem is not None:
        return f"{name} cannot be used: {problem['message']} {problem.get('advice', '')}".strip()
    driver = after.get("driver", "")
    if before is None:
        return f"{name} was found{f' (driver {driver})' if driver else ''}."
    if before.get("problem") is not None:
        return f"{name} can be used again."
    if before.get("driver", "") != driver:
        return f"{name} has another driver: {driver or 'none'} instead of {before.get('driver') or 'none'}."
    was, now = dict(before.get("runtimes", ())), dict(after.get("runtimes", ()))
    changes = [f"{one} {now[one]}" for one in now if was.get(one) != now[one]]
    changes += [f"no {one}" for one in was if one not in now]
    return f"{name} has changed{': ' if changes else ''}{', '.join(changes)}."
