"""Maps that remember the last few things: changed once an event, so changing one must not cost its length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def remembered(mapping: Mapping[str, T], key: str, value: T, limit: int) -> dict[str, T]:
    """A copy in which `key` is the last; the first is forgotten when there are more than `limit`."""
    new = dict(mapping)
    new.pop(key, None)
    new[key] = value
    if len(new) > limit:
        del new[next(iter(new))]
    return new


def without(mapping: Mapping[str, T], key: str) -> Mapping[str, T]:
    if key not in mapping:
        return mapping
    new = dict(mapping)
    del new[key]
    return new
