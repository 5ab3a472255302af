"""The current state of a remote backend, as a value to report."""

from __future__ import annotations

from typing import Literal

import msgspec

from greenroom.actors.values import Failure


class RemoteReading(msgspec.Struct, frozen=True, kw_only=True):
    """A remote backend as it is now."""

    name: str
    url: str
    state: Literal["unasked", "answers", "silent"] = "unasked"
    """`silent`: it does not answer, or its answer cannot be used."""
    since: float = 0.0
    """Wall-clock second of the last change of `state` since the daemon started."""
    asked_at: float = 0.0
    """Wall-clock second of the last check."""
    failure: Failure | None = None
    next_in: float = 0.0
    """Seconds until the next check."""
    models: tuple[str, ...] = ()
    """Their own names, as last listed."""
    slots: int = 0
    """The maximum number of requests sent to it at once."""
    inside: int = 0
    """The number of requests that it has now."""


def clause(failure: Failure) -> str:
    """Why a remote backend cannot be used, to follow a colon."""
    return f"{failure.message[:1].lower()}{failure.message[1:].removesuffix('.')}"
