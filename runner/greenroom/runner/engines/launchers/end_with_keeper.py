"""For launchers: an engine ends when its keeper does, and at once when signalled.

The keeper leaves every engine the read end of a pipe without a writer in use; its end means that the keeper
is dead. On Linux the kernel kills the engine then (parent-death signal); elsewhere a child of ours does,
since some engines hold Python's lock for the whole of their load and no thread would run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading


def end_with_keeper(*, by_child: bool = not sys.platform.startswith("linux")) -> None:
    """Call first, while there is only one thread. Does nothing without a keeper."""
    fd = int(os.environ.get("GREENROOM_KEEPER_FD", "-1"))
    if fd < 0:
        return
    if by_child:
        _watch_as_child(fd)
    else:
        threading.Thread(target=_watch_as_thread, args=(fd,), name="keeper-watch", daemon=True).start()


def die_at_once_when_told() -> None:
    """Have SIGINT and SIGTERM end the process without Python, which may be blocked for minutes during a
    load.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _watch_as_thread(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.read(fd, 1)
    os._exit(1)


def _watch_as_child(fd: int) -> None:
    engine = os.getpid()
    alive_read, alive_write = os.pipe()  # closes when the engine ends, telling the child
    if os.fork():
        os.close(alive_read)
        return
    os.close(alive_write)
    import select

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)  # else it would hold the engine's output open
    ended, _, _ = select.select([fd, alive_read], [], [])
    if alive_read not in ended and os.getppid() == engine:
        os.kill(engine, signal.SIGKILL)
    os._exit(0)
