"""Cleans up in a forked child, which has copies of our objects but none of our threads.

A lock that a thread of the parent held during the fork stays locked in the child, and a descriptor
that the child inherits keeps alive what should end with the parent. So objects that have locks or descriptors
register here and are called in the child.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something that has locks or descriptors."""

    def forked(self) -> None:
        """This is a copy in a child: replace locks, close what is the parent's. Must not raise."""
        ...


_known: WeakSet[Forkable] = WeakSet()


def on_fork(one: Forkable) -> None:
    """Call `one.forked()` in every child that is forked while it exists."""
    _known.add(one)


def _tell_all() -> None:
    for one in tuple(_known):
        one.forked()


os.register_at_fork(after_in_child=_tell_all)
