"""Counts the clients that wait for a job, by name if they have one."""

from __future__ import annotations

from collections.abc import Mapping

Waiters = Mapping[str, Mapping[str, int]]
"""key → name → number of requests. The name is empty for clients without one."""


def joined(waiters: Waiters, key: str, name: str) -> Waiters:
    names = waiters.get(key, {})
    return {**waiters, key: {**names, name: names.get(name, 0) + 1}}


def left(waiters: Waiters, key: str, name: str) -> Waiters:
    """Without all requests of the named client, or one request of those without a name."""
    names = dict(waiters.get(key, {}))
    again = names.pop(name, 0) - 1
    if not name and again > 0:
        names[name] = again
    return {**waiters, key: names}


def count(waiters: Waiters, *keys: str) -> int:
    return sum(sum(waiters.get(key, {}).values()) for key in keys)
