"""The daemon as the first process of a container, which has to reap orphans.

A process whose parent has ended becomes a child of process 1, and stays a zombie until process 1 waits for
it. So process 1 forks the daemon, passes signals on to it, reaps all children, and exits as the daemon does.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

_PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
)
_BY_THE_KERNEL = 0x80
"""`si_code` of a signal that the terminal sends to all processes before it: the daemon has it already."""


def as_first_process() -> None:
    """If this process is the first one, go on as a child of it. Called before there are threads."""
    if os.getpid() == 1 and sys.platform == "linux":
        go_on_below()


def go_on_below() -> None:
    """Fork; the child returns, and this process looks after it until it ends."""
    waited_for = {signal.SIGCHLD, *_PASSED_ON}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    _look_after(child, waited_for)


def _look_after(child: int, waited_for: set[signal.Signals]) -> NoReturn:
    while True:
        received = vars(signal)["sigwaitinfo"](waited_for)  # macOS has none, and no containers
        if received.si_signo != signal.SIGCHLD:
            if received.si_code != _BY_THE_KERNEL:
                os.kill(child, received.si_signo)
            continue
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
