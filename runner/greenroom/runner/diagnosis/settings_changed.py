"""What is new about the settings of a daemon, compared with those of the daemon before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from greenroom.actors.daemon_log import DaemonStarted, SettingInForce


def settings_changed(before: DaemonStarted, after: DaemonStarted) -> tuple[str, ...]:
    """`memory_budget was 8 GB (config.toml), now 4 GB (environment GREENROOM_MEMORY_BUDGET)` for each.

    None where either daemon was of a version that did not note its settings.
    """
    if not before.settings or not after.settings:
        return ()
    old, new = ({one.name: one for one in event.settings} for event in (before, after))
    return tuple(
        f"{name} was {_told(old.get(name))}, now {_told(new.get(name))}"
        for name in dict.fromkeys((*old, *new))
        if _value(old.get(name)) != _value(new.get(name))
    )


def chosen(settings: Sequence[SettingInForce]) -> str:
    """Those that are no defaults: `keep_alive 30m (flag --keep-alive), …`; empty if there are none."""
    return ", ".join(f"{one.name} {_told(one)}" for one in settings if one.origin != "default")


def _value(one: SettingInForce | None) -> str:
    return one.value if one is not None else ""


def _told(one: SettingInForce | None) -> str:
    if one is None:
        return "not set"
    origin = PurePath(one.origin).name if one.origin.startswith("/") else one.origin
    return f"{one.value} ({origin})"
