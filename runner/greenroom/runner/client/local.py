"""A Greenroom inside this program, and the front door through which its clients ask, without a port."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import socket
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from greenroom.actors.journal.port import JournalError
from greenroom.actors.kernel.errors import KernelError
from greenroom.runner.client.access import Access, closed, settings_from
from greenroom.runner.client.daemons import unusable
from greenroom.runner.client.errors import IN_PROCESS, NotAvailable
from greenroom.runner.client.http_client import HttpClient
from greenroom.runner.config import NAMES, Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.daemon_lock import HomeLocked
from greenroom.runner.diagnosis.host_actors import HostActor
from greenroom.runner.embedded.loop_thread import LoopThread
from greenroom.runner.errors import JobFailed
from greenroom.runner.home import HomeUnusable
from greenroom.runner.http.aiohttp_adapter import ServerRunner
from greenroom.runner.http.app import context_of, front_door
from greenroom.runner.systems.peer_processes import process_caller
from greenroom.runner.threads import NoThread, whole

R = TypeVar("R")

_CLOSE = 3.0
"""Seconds for the last words of requests under way."""

_open: dict[Path, LocalAccess] = {}
"""By data directory, what `Greenroom.open` has opened in this process and not closed yet."""
_opening = threading.Lock()


def open_home(
    home: str | os.PathLike[str] | None,
    settings: dict[str, Any],
    make: Callable[[LocalAccess], R],
    on_failure: Callable[[BaseException], None] | None = None,
    actors: tuple[Any, ...] = (),
) -> R:
    """What `make` makes of the access to the Greenroom of a data directory, which all who open it share.

    Raises TypeError for a setting that does not exist, ValueError for one that cannot be used or differs
    from those with which it is open.
    """
    if on_failure is not None and not callable(on_failure):
        raise TypeError(f"on_failure must be a function, not {type(on_failure).__name__}")
    if wrong := [one for one in actors if not isinstance(one, HostActor)]:
        raise TypeError(f"actors must be HostActors, not {type(wrong[0]).__name__}")
    if home is not None and not isinstance(home, str | os.PathLike):
        raise TypeError(f"home must be a path, not {type(home).__name__}")
    if unknown := settings.keys() - set(NAMES):
        raise TypeError(f"there is no setting {min(unknown)!r}; there are {', '.join(NAMES)}")
    wanted = settings_from({**settings, "home": os.fspath(home) if home is not None else None})
    with _opening:
        known = _open.get(wanted.home)
        if known is not None and known.opened is None:
            known.close_if_unused()  # its start may have failed, of which nothing is used again
        if known is not None and (differing := _differing(known, wanted, actors)):
            known.close_if_unused()  # its clients may have been dropped without being closed
            if not known.is_over:
                raise ValueError(
                    f"{wanted.home} is open in this process with other settings ({', '.join(differing)}). "
                    "Close the client that has it open first, or open it with the same settings."
                )
        if known is None or known.is_over:
            known = _open[wanted.home] = LocalAccess(Greenroom(wanted, actors=actors))
            known.actors = actors
        if on_failure is not None:
            known.notify_of_failure(on_failure)
        return make(known)


def _differing(known: LocalAccess, wanted: Settings, actors: tuple[HostActor, ...]) -> list[str]:
    found = [name for name in NAMES if getattr(known.settings, name) != getattr(wanted, name)]
    # Two openings in one program may make objects of their own for the same actors.
    ours, others = ({one.core.address for one in given} for given in (known.actors, actors))
    return found if ours == others else [*found, "actors"]


class LocalAccess(Access):
    """Starts a Greenroom when it is needed first, and stops it when its last client is closed.

    One that runs already is its owner's to stop.
    """

    def __init__(self, runner: Greenroom) -> None:
        self.runner = self._runner = runner
        self.actors: tuple[HostActor, ...] = ()
        """With which `Greenroom.open` has made it."""
        self.settings = runner.settings
        self._is_ours = not runner.is_running
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._door: _Door | None = None
        self._over = False
        self._pid = os.getpid()
        self.notify_of_failure = runner.notify_of_failure

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A Greenroom inside a program cannot be sent to another process; share a daemon instead: "
            "greenroom.connect()."
        )

    def add(self, user: object) -> None:
        """`user` needs it until it says so or is garbage."""
        self._users.add(user)

    @property
    def is_over(self) -> bool:
        """Closed, or of the process that this one was forked from."""
        return self._over or self._pid != os.getpid()

    @property
    def opened(self) -> HttpClient | None:
        door = self._door
        return door.http if door is not None and door.is_open and not self.is_over else None

    def _expect_no_fork(self) -> None:
        if self._pid != os.getpid():
            raise NotAvailable(
                f"This Greenroom runs in process {self._pid}, from which this one was forked.",
                "Open it after the fork, in one process, or share a daemon: greenroom.connect().",
                code="forked",
                kind="invalid",
            )

    def http(self) -> HttpClient:
        self._expect_no_fork()
        with self._lock:
            if self._over:
                raise closed()
            if self._door is None or not self._door.is_open:
                self._door = whole(self._begin, self._end)
            return self._door.http

    def again(self) -> HttpClient:
        self._expect_no_fork()
        if (opened := self.opened) is None:
            raise closed()
        return opened

    def close(self, user: object) -> None:
        self._users.discard(user)
        self.close_if_unused()

    def close_if_unused(self) -> None:
        """Stop it unless a client has it open. Idempotent."""
        if self._users or self._pid != os.getpid():
            return
        with self._lock:
            if self._over:
                return
            self._over = True
            door, self._door = self._door, None
            if _open.get(self._runner.home) is self:
                _open.pop(self._runner.home)
            if door is not None:
                whole(lambda: self._end(door))

    def _begin(self) -> _Door:
        try:
            if not self._runner.is_running:
                if not self._is_ours:
                    raise NotAvailable(
                        "This Greenroom has been stopped.", "Start it again.", code="closed", kind="invalid"
                    )
                self._runner.start()
            return _Door(self._runner)
        except HomeLocked as locked:
            shared = "Or share it: greenroom.connect(…) asks that daemon." if locked.by_daemon else ""
            raise NotAvailable(str(locked), shared, code="home_in_use", kind="conflict") from locked
        except JournalError as error:
            raise NotAvailable(_sentence(error), code="journal_unusable", kind="internal") from error
        except (KernelError, JobFailed, NoThread) as error:
            raise NotAvailable(_sentence(error), code="not_started", kind="internal") from error
        except OSError as error:
            settings = self._runner.settings
            raise unusable(HomeUnusable(error, settings.home, settings.origin("home"))) from error

    def _end(self, door: _Door) -> None:
        door.close()
        if self._is_ours:
            self._runner.stop(reason="the program that has it inside closed it")


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


class _Door:
    """The front door on an event loop of its own, in a thread; each connection to it is a pair of sockets."""

    def __init__(self, runner: Greenroom) -> None:
        """Raises NoThread."""
        self._runner = runner
        self._caller = process_caller(os.getpid())
        self._loop = LoopThread("greenroom-door")
        try:
            self._loop.begin(self._open()).result()
        except BaseException:
            self._loop.close()
            raise
        self.is_open = True
        self.http = HttpClient(IN_PROCESS, dial=self.dial)
        runner.attachments.add(self)

    def dial(self) -> socket.socket:
        """One end of a connection, whose other end the front door serves. Raises ConnectionError."""
        if not self.is_open:
            raise ConnectionResetError("it was closed")
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        try:
            self._loop.begin(self._serve_on(theirs))
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return ours

    def close(self) -> None:
        """End the requests under way with a sentence, and the thread. Idempotent."""
        if self.is_open:
            self.is_open = False
            concurrent.futures.wait([self._loop.begin(self._served.cleanup())], 4 * _CLOSE)
            self._loop.close()
        self._runner.attachments.remove(self)

    def close_from_elsewhere(self) -> None:
        """The Greenroom stops."""
        self.close()

    async def _open(self) -> None:
        app = front_door(self._runner)
        self._callers = context_of(app).callers
        self._served = ServerRunner(app, access_log=None, shutdown_timeout=_CLOSE, handle_signals=False)
        await self._served.setup()

    async def _serve_on(self, connection: socket.socket) -> None:
        assert self._served.server is not None
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(self._served.server, connection)
        self._callers.introduce(transport, self._caller)
