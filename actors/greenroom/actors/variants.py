"""Builds of a backend for different devices, in the order in which a machine would use them."""

from __future__ import annotations

from greenroom.actors.graphics import Runtime
from greenroom.actors.values import Fact

BEST = "best"
"""The name by which a request leaves the choice of a variant to the order."""
USUAL = "usual"
"""The name by which a request means the variant that stored values give no name."""


class RankedVariant(Fact, frozen=True, kw_only=True):
    """A variant of a backend, and what it would be worth on this machine."""

    name: str
    usable: bool
    reason: str
    """Why it has its place, as a sentence."""
    runtime: Runtime | None = None
    """What it computes through; None for the processor."""
    device: str = ""
    """Id of the best device that it would use."""
    download_bytes: int = 0
    """About how much installing it would fetch; 0 if unknown."""
