"""Shares one host among the installers of this process that have the same folder."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import NoReturn

from greenroom.runner.client.errors import NotAvailable
from greenroom.runner.daemon_lock import HomeLocked
from greenroom.runner.environments.errors import closed, forked
from greenroom.runner.environments.host import EnvironmentHost, opened
from greenroom.runner.threads import whole

POLL = 0.1
"""Seconds between attempts to open a folder that another process has open, or that is being closed."""


class SharedHost:
    """The host of a folder: started when first needed, stopped when its last installer is closed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._host: EnvironmentHost | None = None
        self._over = False
        self._pid = os.getpid()

    def __reduce__(self) -> NoReturn:
        raise TypeError("An installer cannot be sent to another process, but its environments can.")

    @property
    def is_over(self) -> bool:
        """Closed, or of the process that this one was forked from."""
        return self._over or self._pid != os.getpid()

    def add(self, user: object) -> None:
        """`user` needs it until it says so or is garbage."""
        self._users.add(user)

    def host(self) -> EnvironmentHost:
        """Start it if necessary. Raises NotAvailable, and HomeLocked while another process has the folder."""
        if self._pid != os.getpid():
            raise forked(self.home)
        with self._lock:
            if self._over:
                raise closed(self.home)
            if self._host is None:
                self._host = whole(lambda: opened(self.home), EnvironmentHost.stop)
            return self._host

    def close(self, user: object) -> None:
        self._users.discard(user)
        if self._users or self._pid != os.getpid():
            return
        with self._lock:
            self._over = True
            with _opening:
                if _open.get(self.home) is self:
                    _open.pop(self.home)
            host, self._host = self._host, None
            if host is not None:
                whole(host.stop)


_open: dict[Path, SharedHost] = {}
_opening = threading.Lock()


def shared(home: Path, user: object) -> SharedHost:
    """The host of a folder, which all installers of this process share."""
    with _opening:
        known = _open.get(home)
        if known is None or known.is_over:
            known = _open[home] = SharedHost(home)
        known.add(user)
        return known


def still_locked(error: HomeLocked, home: Path, waited: float) -> NotAvailable:
    if error.pid == os.getpid():
        return NotAvailable(str(error), code="home_in_use", kind="conflict")
    who = f"process {error.pid}" if error.pid else "another process"
    return NotAvailable(
        f"{who[0].upper()}{who[1:]} still has the environments in {home} open after a wait of {waited:g} s.",
        "Wait longer (`wait=`), close the installer there, or give this program a separate folder.",
        code="home_in_use",
        kind="conflict",
        numbers={"pid": float(error.pid), "waited": waited},
        retry_after=5.0,
    )
