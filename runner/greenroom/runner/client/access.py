"""How a client gets at a Greenroom: a daemon over HTTP, or one in this program."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from greenroom.runner.client.daemons import (
    Daemon,
    client_for,
    ensure_daemon,
    not_running,
    probe,
    taken,
    unusable,
)
from greenroom.runner.client.errors import NotAvailable
from greenroom.runner.client.http_client import HttpClient
from greenroom.runner.client.wire import SOCKET
from greenroom.runner.config import Settings, load
from greenroom.runner.home import HomeUnusable

if TYPE_CHECKING:
    from greenroom.runner.daemon import Greenroom


class Access(ABC):
    """The way to one Greenroom, shared by the clients that use it. For any thread."""

    runner: Greenroom | None = None
    """The Greenroom, if it is in this program."""

    @abstractmethod
    def http(self) -> HttpClient:
        """Open it if need be, which may take seconds. Raises NotAvailable."""

    @abstractmethod
    def again(self) -> HttpClient:
        """Like `http`, but starts nothing: for callers that wait. Raises NotAvailable, Unreachable."""

    @property
    @abstractmethod
    def opened(self) -> HttpClient | None:
        """What `http` returns, if it is open already."""

    def add(self, user: object) -> None:  # noqa: B027 - only some keep count
        """`user` needs it until it closes it or is garbage."""

    def lost(self) -> None:  # noqa: B027 - only some can move
        """Nothing has answered: look again next time."""

    @abstractmethod
    def close(self, user: object) -> None:
        """`user` needs it no more; with its last one it is closed. Idempotent."""


class DaemonAccess(Access):
    """A daemon, which is looked for, and started if that is wanted, when it is needed first.

    It belongs to no process: closing ends nothing, and a fork goes on using it.
    """

    def __init__(self, target: str | os.PathLike[str] | None, start: bool, port: int | None) -> None:
        """`target` is a data directory or a URL; None means the user's own daemon."""
        self._url = (
            target if isinstance(target, str) and ("://" in target or target.startswith(SOCKET)) else ""
        )
        self._start, self._port = start, port
        self._lock = threading.Lock()
        self._http: HttpClient | None = None
        if self._url:
            host = {} if self._url.startswith(SOCKET) else {"host": self._url}
            self.settings = settings_from(host, tolerant=True)
        elif target is None:
            self.settings = settings_from({"port": port}, tolerant=True)
        else:
            self.settings = _of_home(os.fspath(target), port)
        self._target = self._url or (None if target is None else self.settings.home)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process, such as one that `multiprocessing` spawns, looks for the same daemon."""
        return DaemonAccess, (self._target, self._start, self._port)

    @property
    def opened(self) -> HttpClient | None:
        return self._http

    def http(self) -> HttpClient:
        return self._found(start=self._start)

    def again(self) -> HttpClient:
        return self._found(start=False)

    def _found(self, *, start: bool) -> HttpClient:
        with self._lock:
            if self._http is None:
                if self._url:
                    self._http = self._at_url()
                else:
                    self._http = ensure_daemon(self.settings, _note) if start else client_for(self.settings)
            return self._http

    def lost(self) -> None:
        # It may have been started again since, elsewhere.
        self._http = None

    def close(self, user: object) -> None:
        pass

    def _at_url(self) -> HttpClient:
        if self._url.startswith(SOCKET):
            return HttpClient(self._url)
        found = probe(self.settings.url)
        if found is None:
            raise not_running(self.settings)
        if not isinstance(found, Daemon):
            raise taken(self.settings, found)
        return found.client()


def _of_home(home: str, port: int | None) -> Settings:
    """The settings for the daemon of a data directory, which what the environment says of hosts is not about.

    Unless a port is given or configured, the system chooses one: the usual one is the user's own daemon's.
    """
    settings = settings_from({"home": home, "port": port}, tolerant=True)
    settings = settings.changed("connect", host="", instance="")
    if settings.origin("port") == "default" and settings.home != settings_from({}, tolerant=True).home:
        settings = settings.changed("argument port", port=0)
    return settings


def settings_from(given: Mapping[str, Any], *, tolerant: bool = False) -> Settings:
    """`load`, whose error about the data directory is one of ours. Raises BadSetting, NotAvailable."""
    try:
        return load(given, tolerant=tolerant, in_code=True)
    except HomeUnusable as error:
        raise unusable(error) from error


def closed() -> NotAvailable:
    """A client was used after its end."""
    return NotAvailable("This client is closed.", "Open another one.", code="closed", kind="invalid")


def _note(sentence: str) -> None:
    import logging  # programs whose daemon runs do without it

    logging.getLogger(__name__).info(sentence)
