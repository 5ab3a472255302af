"""A backend that is only a URL, as it is now: a value, for those who tell of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from greenroom.actors.values import Failure


class RemoteReading(msgspec.Struct, frozen=True, kw_only=True):
    """A remote backend as it is now."""

    name: str
    url: str
    state: Literal["unasked", "answers", "silent"] = "unasked"
    """`silent`: it does not answer, or not so that it could be used."""
    since: float = 0.0
    """Wall-clock second of the last change of that, in this life of the daemon."""
    asked_at: float = 0.0
    """Wall-clock second of the last answer, or of its absence."""
    failure: Failure | None = None
    next_in: float = 0.0
    """Seconds until it is asked again."""
    models: tuple[str, ...] = ()
    """Their own names, as last listed."""
    slots: int = 0
    """Requests that it gets at once."""
    inside: int = 0
    """Requests that it has."""


def clause(failure: Failure) -> str:
    """Why a remote backend cannot be used, to follow a colon."""
    return f"{failure.message[:1].lower()}{failure.message[1:].removesuffix('.')}"
