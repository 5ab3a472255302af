"""What became of the search for a request's conversation on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

_REASONS: Mapping[str, str] = {
    "idle": "when it had been idle for a moment",
    "keep_alive": "when its keep-alive ended",
    "another_slot": "when another slot of the engine had read it",
    "overwritten": "when another conversation took its slot",
    "room": "when the model was evicted",
    "unload": "when the model was unloaded",
    "shutdown": "when Greenroom stopped",
    "reconfigured": "when the model was configured again",
    "larger_context": "when it was loaded with a larger context",
    "moved": "when it was moved to another device",
    "retiring": "when its backend was replaced",
    "superseded": "when its backend was upgraded",
}


class EndReason(NamedTuple):
    """Why an engine ends."""

    reason: str = "stopping"
    cause: str = ""
    """The model that needs the room."""


def saved_when(reason: str) -> str:
    """When something was saved for a reason, such as `when the model was evicted`."""
    return _REASONS.get(reason, "when its engine was stopped")


class Restoration(msgspec.Struct, frozen=True, kw_only=True):
    """`tokens` is 0 where nothing was restored; `why_not` then says why, if that is known."""

    tokens: int = 0
    """Given back to the engine that the request's prompt goes on from, about."""
    seconds: float = 0.0
    """How long the engine would have taken to read them."""
    took: float = 0.0
    """Seconds until the engine had them."""
    saved_at: float = 0.0
    """In seconds since 1970."""
    reason: str = ""
    """Why it was saved then: the reason of the eviction, or `idle`."""
    cause: str = ""
    """The model that its engine was evicted for."""
    why_not: str = ""
    """To follow a colon."""
    compat: str = ""
    """What the engine has in common with the one that saved it."""
    whole: bool = False
    """The prompt goes on from all that was saved."""

    def why(self) -> str:
        """When that was saved, such as `when the model was evicted for gemma3`; or why there is nothing."""
        if not self.tokens:
            return self.why_not
        text = saved_when(self.reason)
        return f"{text} for {self.cause}" if self.cause else text
