"""How many files and sockets this process may have open, and how many of them clients may take."""

from __future__ import annotations

import errno
import os
import resource

_WANTED = 65_536
"""Far more than a daemon needs. A larger limit slows programs that close every possible descriptor."""
_RESERVE = 64
"""Descriptors, beyond those open now, that clients never get: for the journal, engines and jobs."""
_EACH = 2
"""What one client may take: its connection, and the one to its engine or the file it is sent."""
_MOST_CLIENTS = 4_096
"""Connections at most; each takes memory too."""
_FEWEST_CLIENTS = 8

PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of a call that found no free descriptor or memory: they pass when others release some."""


def raise_soft_limit() -> int:
    """Allow this process as many open files as the system lets it have; how many it may have now."""
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
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _WANTED if soft == resource.RLIM_INFINITY else soft


def connections_within(most_files: int, open_now: int) -> int:
    """How many connections clients may have, so that what keeps the daemon going never lacks a descriptor."""
    left = (most_files - open_now - _RESERVE) // _EACH
    return max(_FEWEST_CLIENTS, min(_MOST_CLIENTS, left))


def open_now() -> int:
    """How many descriptors this process has open, as far as the system tells."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return _RESERVE
