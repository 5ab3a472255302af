"""Cleans up in a forked child, which has copies of our objects but none of our threads.

A lock that a thread of the parent held during the fork stays locked in the child, and a descriptor
that the child inherits keeps alive what should end with the parent. So objects that have locks or descriptors
register here and are called in the child.

A library's own locks cannot be replaced, and a child hangs in the first call that needs one. So a thread
holds a lock of ours while it is inside such a library, and a fork waits for it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something that has locks or descriptors."""

    def forked(self) -> None:
        """This is a copy in a child: replace locks, close what is the parent's. Must not raise."""


_known: WeakSet[Forkable] = WeakSet()
_awaited: WeakSet[threading.Lock] = WeakSet()
_forking = threading.Lock()
_held: list[threading.Lock] = []
"""Taken for the fork that is under way."""
_LONGEST = 5.0
"""Seconds a fork waits at most: a thread may be inside a call to a disk that hangs."""


def on_fork(one: Forkable) -> None:
    """Call `one.forked()` in every child that is forked while it exists."""
    _known.add(one)


def lock_for_forks() -> threading.Lock:
    """A lock that every fork waits for while it exists; no thread that holds it may fork."""
    lock = threading.Lock()
    _awaited.add(lock)
    return lock


def _wait() -> None:
    _forking.acquire()
    deadline = time.monotonic() + _LONGEST
    # One by one: what an extend has taken when it is interrupted would stay locked.
    for lock in tuple(_awaited):
        if lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            _held.append(lock)  # noqa: PERF401


def _go_on() -> None:
    while _held:
        _held.pop().release()
    _forking.release()


def _tell_all() -> None:
    _go_on()
    for one in tuple(_known):
        one.forked()


os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_tell_all)
