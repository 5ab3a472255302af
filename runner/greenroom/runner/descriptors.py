"""The limit on open files and sockets of this process, and the share of client connections."""

from __future__ import annotations

import errno
import os
import resource

_WANTED = 65_536
"""Far more than a daemon needs. A larger limit slows programs that close every possible descriptor."""
_RESERVE = 64
"""Descriptors, beyond those open now, reserved for the journal, engines and jobs."""
_EACH = 2
"""Descriptors per client: its connection, and the one to its engine or to the file it is sent."""
_MOST_CLIENTS = 4_096
"""Maximum connections; each takes memory too."""
_FEWEST_CLIENTS = 8

PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors for lack of a descriptor or memory: they pass when others release some."""


def raise_soft_limit() -> int:
    """Raise the limit on open files as far as the system allows; returns the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS has a smaller limit of its own behind an infinite hard one.
        for number in (wanted, 10_240):
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))
                break
            except (OSError, ValueError):
                continue
    return limit()


def limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _WANTED if soft == resource.RLIM_INFINITY else soft


def connections_within(most_files: int, open_now: int) -> int:
    """Maximum client connections that leave enough descriptors for the daemon itself."""
    left = (most_files - open_now - _RESERVE) // _EACH
    return max(_FEWEST_CLIENTS, min(_MOST_CLIENTS, left))


def open_now() -> int:
    """Open descriptors of this process, where the system lists them."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return _RESERVE
