"""Settings as people read them, with where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from greenroom.actors.daemon_log import SettingInForce
from greenroom.runner.config import NAMES, Settings
from greenroom.runner.installations.sources import redact
from greenroom.runner.remote_settings import RemoteBackend
from greenroom.runner.setting_values import ExternalBackend
from greenroom.runner.units import format_duration, format_size

_DURATIONS = frozenset(
    "keep_alive max_wait max_queued progress_after unread_for conversation_expiry record_for engine_grace "
    "stall_after".split()
)
_SIZES = frozenset(
    "memory_budget headroom gpu_headroom prompt_cache conversation_cache conversation_writes max_body".split()
)
_UNSET = {
    "memory_budget": "auto (90% of memory, minus the headroom)",
    "slots": "auto (the backend's default, fewer if memory is short)",
    "prompt_cache": "auto (two contexts, at most 1 GB, less if memory is short)",
    "conversation_cache": "auto (10 GB, or a tenth of what is free)",
    "conversation_writes": "auto (ten times conversation_cache)",
}
_ALWAYS = frozenset("bind port install_policy keep_alive memory_budget headroom slots max_wait".split())
"""Noted at each start even if they are defaults."""
_NOT_THE_DAEMONS = frozenset(("home", "host", "instance", "log_level"))
_MOST = 100
"""Settings that are noted: of models and registries there may be any number."""


def in_force(settings: Settings) -> tuple[SettingInForce, ...]:
    """What a daemon notes when it starts: the settings that matter most, and those that are no defaults."""
    return tuple(_noted(settings))[:_MOST]


def _noted(settings: Settings) -> Iterator[SettingInForce]:
    for name in NAMES:
        if name in _NOT_THE_DAEMONS or (name not in _ALWAYS and settings.origin(name) == "default"):
            continue
        is_auto = name in _UNSET and getattr(settings, name) is None
        for row, value, origin in rows(settings, name):
            yield SettingInForce(name=row, value="auto" if is_auto else redact(value), origin=origin)


def _listed(indexes: tuple[str, ...] | None) -> str:
    return "" if indexes is None else redact(", ".join(indexes)) or "none"


def _external(one: ExternalBackend) -> tuple[tuple[str, Any], ...]:
    return (
        ("binary", one.binary),
        ("python", one.python),
        ("image", one.image),
        ("gpu", "true" if one.gpu else ""),
        ("indexes", _listed(one.indexes)),
    )


def _remote(one: RemoteBackend) -> tuple[tuple[str, Any], ...]:
    return (
        ("url", one.url),
        ("api_key", one.key.source if one.key is not None else ""),
        ("models", "" if one.models == ("*",) else ", ".join(one.models)),
        ("slots", one.slots),
        ("timeout", format_duration(one.timeout)),
        ("ca", one.ca),
    )


def rows(settings: Settings, name: str) -> list[tuple[str, str, str]]:
    value, origin = getattr(settings, name), settings.origin(name)
    if name == "models":
        return [(f"models.{key}", _source(entry), origin) for key, entry in value.items()]
    if name == "backends":
        return [
            (f"backends.{key}.{kind}", str(shown), origin)
            for key, one in value.items()
            for kind, shown in (_remote(one) if isinstance(one, RemoteBackend) else _external(one))
            if shown
        ]
    if name == "registries":
        return [
            (f"registries.{key}.{kind}", text, origin)
            for key, registry in value.items()
            for kind, text in (
                ("mirrors", ", ".join(registry.mirrors)),
                ("insecure", "true" if registry.insecure else ""),
            )
            if text
        ]
    if name == "host" and not value:
        return [(name, f"{settings.url} (this data directory's daemon)", origin)]
    if name == "instance" and not value:
        return [(name, "(this data directory's)", origin)]
    return [(name, readable(name, value), origin)]


def _source(entry: Any) -> str:
    return str(entry.get("source", "")) if isinstance(entry, dict) else str(entry)


def readable(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "(none)"
    if value is None:
        return _UNSET[name]
    if name in _DURATIONS:
        return format_duration(value)
    if name in _SIZES:
        return _size(value)
    return str(value)


def _size(value: int) -> str:
    """As it was most likely written."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("GiB", 2**30), ("MiB", 2**20)):
        if value >= step and value % step == 0:
            return f"{value // step} {unit}"
    return format_size(value)
