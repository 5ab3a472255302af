"""Limits of another process, which Linux alone lets a test change."""

from __future__ import annotations

import resource
import sys

Limits = tuple[int, int]


def limit(pid: int, kind: int, to: Limits | None = None) -> Limits:
    """A limit of a process as it was (soft, hard); from then on it is `to`."""
    before = (0, 0)
    if sys.platform == "linux":
        before = resource.prlimit(pid, kind) if to is None else resource.prlimit(pid, kind, to)
    return before
