"""Who waits for a job: counted by name where they have one, so that who has gone is not counted for ever."""

from __future__ import annotations

from collections.abc import Mapping

Waiters = Mapping[str, Mapping[str, int]]
"""key → name → how often it has asked. The name is empty for those who cannot be told apart."""


def joined(waiters: Waiters, key: str, name: str) -> Waiters:
    """One more waits under this key."""
    here = waiters.get(key, {})
    return {**waiters, key: {**here, name: here.get(name, 0) + 1}}


def left(waiters: Waiters, key: str, name: str) -> Waiters:
    """Somebody waits no longer: with a name for nothing he asked for, without one for one of it."""
    here = dict(waiters.get(key, {}))
    again = here.pop(name, 0) - 1
    if not name and again > 0:
        here[name] = again
    return {**waiters, key: here}


def count(waiters: Waiters, *keys: str) -> int:
    """How many wait under these keys."""
    return sum(sum(waiters.get(key, {}).values()) for key in keys)
