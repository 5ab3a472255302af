"""Whether an engine's socket has a listener: by looking from outside where possible, else by connecting.

Reading `/proc/net/unix` does not disturb an engine; connecting and hanging up does. So we connect only when
that file cannot answer: the socket file is not the one we know, or its listener is not listed (it is in
another network namespace, or the system has no such file).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from enum import Enum
from pathlib import Path

from greenroom.runner.engines.readiness import belongs_to
from greenroom.runner.systems import here

UNIX_SOCKETS = Path("/proc/net/unix")
_LISTENS = 0x10000
"""`__SO_ACCEPTCON` in the column of flags."""


class Reach(Enum):
    """What a look at a socket has found."""

    REACHED = "reached"
    """It has a listener, or at least nothing shows that it has none."""
    GONE = "gone"
    """There is no such file any more, or it is not a socket."""
    REFUSED = "refused"
    """The file is there, but it has no listener."""
    STRANGER = "stranger"
    """Another process listens on it."""


def listeners() -> frozenset[bytes]:
    """Paths of all unix sockets that are listened on, as far as the system tells; empty where it does not."""
    try:
        lines = UNIX_SOCKETS.read_bytes().splitlines()[1:]
    except OSError:
        return frozenset()
    found = set()
    for line in lines:
        words = line.split(None, 7)
        if len(words) == 8 and int(words[3], 16) & _LISTENS:
            found.add(words[7])
    return frozenset(found)


def inode_of(endpoint: Path) -> int:
    """Of a socket's file; 0 when there is none."""
    try:
        found = endpoint.stat()
    except OSError:
        return 0
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else 0


def look(endpoint: Path, *, leader: int, inode: int, listening: frozenset[bytes]) -> Reach:
    """Whether the engine of this leader can be reached; `inode` is that of the file it was ready with."""
    try:
        found = endpoint.stat()
    except FileNotFoundError:
        return Reach.GONE
    except OSError:
        return Reach.REACHED  # a folder that cannot be read says nothing
    if not stat.S_ISSOCK(found.st_mode):
        return Reach.GONE
    if found.st_ino == inode and os.fsencode(endpoint) in listening:
        return Reach.REACHED
    return knock(endpoint, leader)


def knock(endpoint: Path, leader: int) -> Reach:
    """Connect and hang up. Never waits: a unix socket connects, refuses or says that its queue is full."""
    try:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return Reach.REACHED  # no descriptor left: that says nothing about it
    with made as sock:
        sock.setblocking(False)
        try:
            sock.connect(os.fspath(endpoint))
        except FileNotFoundError:
            return Reach.GONE
        except ConnectionRefusedError as problem:
            return Reach.REACHED if here.may_be_crowded(problem) else Reach.REFUSED
        except OSError as problem:
            # EAGAIN: its queue of new connections is full, so somebody listens. What else there is (no
            # descriptor left, no permission) is not the engine's.
            return Reach.GONE if problem.errno == errno.ENOTSOCK else Reach.REACHED
        return Reach.REACHED if belongs_to(here.peer_pid(sock), leader) else Reach.STRANGER
