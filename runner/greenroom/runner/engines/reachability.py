"""Whether an engine's socket has a listener: read from the system where possible, else by connecting.

Reading `/proc/net/unix` does not disturb an engine; connecting and hanging up does. So we connect only when
that file cannot answer: the socket file is not the one we know, or its listener is not listed (it is in
another network namespace, or the system has no such file).
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import stat
from enum import Enum
from pathlib import Path

from greenroom.runner.systems import here

UNIX_SOCKETS = Path("/proc/net/unix")
_LISTENS = 0x10000
"""`__SO_ACCEPTCON` in the flags column."""


class Reachability(Enum):
    REACHED = "reached"
    """It has a listener, or at least nothing shows that it has none."""
    GONE = "gone"
    """The file is gone, or not a socket."""
    REFUSED = "refused"
    """The file exists, but has no listener."""
    STRANGER = "stranger"
    """Another process listens on it."""


def listeners() -> frozenset[bytes]:
    """Paths of all listening unix sockets; empty if the system does not list them."""
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
    """The inode of a socket file; 0 if there is none."""
    try:
        found = endpoint.stat()
    except OSError:
        return 0
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else 0


def check(endpoint: Path, *, leader: int, inode: int, listening: frozenset[bytes]) -> Reachability:
    """Check the socket of the engine led by `leader`; `inode` is the socket file's when the engine was
    ready.
    """
    try:
        found = endpoint.stat()
    except FileNotFoundError:
        return Reachability.GONE
    except OSError:
        return Reachability.REACHED  # an unreadable folder says nothing about the engine
    if not stat.S_ISSOCK(found.st_mode):
        return Reachability.GONE
    if found.st_ino == inode and os.fsencode(endpoint) in listening:
        return Reachability.REACHED
    return knock(endpoint, leader)


def knock(endpoint: Path, leader: int) -> Reachability:
    """Connect and hang up. Never waits: a unix socket connects, refuses, or reports a full queue."""
    try:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return Reachability.REACHED  # no descriptor left, which says nothing about the engine
    with made as sock:
        sock.setblocking(False)
        try:
            sock.connect(os.fspath(endpoint))
        except FileNotFoundError:
            return Reachability.GONE
        except ConnectionRefusedError as problem:
            return Reachability.REACHED if here.may_be_crowded(problem) else Reachability.REFUSED
        except OSError as problem:
            # EAGAIN: the queue of new connections is full, so there is a listener. Other errors
            # (no descriptor
            # left, no permission) are not the engine's.
            return Reachability.GONE if problem.errno == errno.ENOTSOCK else Reachability.REACHED
        return Reachability.REACHED if belongs_to(here.peer_pid(sock), leader) else Reachability.STRANGER


def belongs_to(pid: int, leader: int) -> bool:
    """Whether a process is the leader or in its group (or unknown)."""
    if pid in (0, leader):
        return True
    try:
        return os.getpgid(pid) == leader
    except OSError:
        return False


class EngineConnection(http.client.HTTPConnection):
    """HTTP over an engine's unix socket; every read and write is bounded.

    `connect` raises ConnectionRefusedError if another process than the engine (or a child of it) listens.
    """

    def __init__(self, endpoint: str, bound: float, leader: int) -> None:
        """`bound`: seconds for each read and write; `leader`: the engine's process id, 0 to check none."""
        super().__init__("localhost", timeout=bound)
        self._endpoint = endpoint
        self._leader = leader

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._endpoint)
        if self._leader and not belongs_to(here.peer_pid(self.sock), self._leader):
            raise ConnectionRefusedError("another process listens on the socket")
