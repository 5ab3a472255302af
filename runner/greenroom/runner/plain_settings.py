"""Settings as JSON has them, without credentials."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from greenroom.runner.config import NAMES, Settings
from greenroom.runner.installations.sources import redact

_CLIENTS = ("home", "host", "instance")
"""What says which daemon is meant is no setting of the daemon."""


def plain(value: Any) -> Any:
    """A setting's value, with seconds and bytes as numbers."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, (int, float)) or value is None:
        return value
    if hasattr(value, "items"):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [plain(inner) for inner in value]
    if is_dataclass(value):
        # What a value does not show of itself is a secret.
        shown = {one.name: getattr(value, one.name) for one in fields(value) if one.repr}
        return {kind: plain(inner) for kind, inner in shown.items() if inner}
    return str(value)


def values_of(settings: Settings) -> dict[str, Any]:
    """What a daemon with these settings works by, by name."""
    return {name: plain(getattr(settings, name)) for name in NAMES if name not in _CLIENTS}
