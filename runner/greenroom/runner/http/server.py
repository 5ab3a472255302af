"""The daemon's main loop: bind, start the runner, open the front door, wait for the end, close in order.

The port is bound before anything is started, so that a daemon which cannot have it has changed nothing;
clients that come meanwhile wait in the socket's queue. `daemon.json` tells other processes where we are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenroom import __version__
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.runner.daemon import STOP_BOUND, Greenroom
from greenroom.runner.daemon_lock import DaemonLock, HomeLocked
from greenroom.runner.descriptors import connections_within, open_now, raise_soft_limit
from greenroom.runner.diagnosis.freshener import Freshener
from greenroom.runner.http.accepting import Connections
from greenroom.runner.http.aiohttp_adapter import ServerRunner, watch
from greenroom.runner.http.app import context_of, front_door
from greenroom.runner.http.unix_socket import UnixListener
from greenroom.runner.plain_settings import values_of
from greenroom.runner.proof import write_privately
from greenroom.runner.shutdown import LastResort
from greenroom.runner.systems import here

_log = logging.getLogger(__name__)

NOTE = "daemon.json"

_BACKLOG = 1024
_CLOSE = 3.0
"""Seconds for the last words to reach their clients."""
_THREADS = 8
_LOOK = 0.25
"""Seconds between two looks at whether the system has stopped itself."""
_KEEP_ALIVE = 75.0
_BOUND = STOP_BOUND + 15.0
"""Seconds beyond the drain that a stop may take."""


class PortTaken(Exception):
    """Another program listens on the address; the data directory is not the reason."""

    def __init__(self, address: str, port: int) -> None:
        super().__init__(
            f"Port {port} of {address} is taken by another program. "
            "Stop it, or choose another port with --port or GREENROOM_PORT."
        )
        self.address = address
        self.port = port


class BadBind(Exception):
    """The address cannot be listened on; the text says why."""


class SystemStopped(Exception):
    """The actor system has stopped itself; the cause is why."""


def run(
    greenroom: Greenroom,
    *,
    allowed_hosts: Collection[str] = (),
    allowed_origins: Collection[str] = (),
    opened: Callable[[str], None] | None = None,
    uds: Path | None = None,
    drain: float = 5.0,
    bound: float = _BOUND,
) -> None:
    """Serve until SIGINT, SIGTERM, SIGHUP or `POST /daemon/stop`; a second SIGINT or SIGTERM ends at once.

    `greenroom` is not started yet; it is started and stopped here. `allowed_hosts` and `allowed_origins`
    add to its settings of the same names. `opened` is called with the URL once the front door is open.
    `drain` are the seconds that requests under way have to end by themselves at a stop; then they are ended
    with a sentence. A stop that has not come to its end after `bound` seconds more ends the process,
    whatever it hangs on; engines then end with their keepers.

    `uds` is a unix socket to listen on too.

    Raises BadBind, PortTaken, SocketUnusable, HomeLocked (all before anything has changed), what
    `Greenroom.start` raises, and SystemStopped.
    """
    listener = _bind(greenroom)
    greenroom.address = _url(listener)
    last_resort = LastResort(drain + bound)
    hosts = (*allowed_hosts, *greenroom.settings.allowed_hosts)
    origins = (*allowed_origins, *greenroom.settings.allowed_origins)
    serving = _Serving(greenroom, listener, hosts, origins, opened, drain, last_resort)
    # A thread that hangs, on a frozen disk say, would be waited for here.
    with last_resort, contextlib.closing(listener), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serving.serve(uds))


@dataclass
class _Serving:
    greenroom: Greenroom
    listener: socket.socket
    hosts: Collection[str]
    origins: Collection[str]
    opened: Callable[[str], None] | None
    drain: float
    last_resort: LastResort
    _keep_engines: float | None = None
    _reason: str = ""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, uds: Path | None) -> None:
        _begin_threads()
        with _listening_on(uds) as also, _signals(self._signalled):
            await asyncio.to_thread(self.greenroom.start)
            try:
                with _fresh_why(self.greenroom):
                    await self._receive([self.listener, *also])
            finally:
                self.last_resort.begin()
                _log.info("stopping: %s", self._reason or "an error")
                await asyncio.to_thread(self.greenroom.stop, self._keep_engines, reason=self._reason)
        failure = self.greenroom.failure
        if failure is not None:
            raise SystemStopped(str(failure)) from failure

    async def _receive(self, listeners: list[socket.socket]) -> None:
        greenroom = self.greenroom
        app = front_door(
            greenroom, allowed_hosts=self.hosts, allowed_origins=self.origins, stop=self._asked_to_stop
        )
        runner = ServerRunner(
            app, access_log=None, keepalive_timeout=_KEEP_ALIVE, shutdown_timeout=_CLOSE, handle_signals=False
        )
        most = connections_within(raise_soft_limit(), open_now())
        doors = [Connections(listener, most) for listener in listeners]
        for one in doors:
            watch(app, one.begin, one.end)
        await runner.setup()
        server = runner.server
        assert server is not None
        note = greenroom.home / NOTE
        url = _url(self.listener)
        try:
            await asyncio.to_thread(_write_note, note, url, greenroom)
            for one in doors:
                one.start(server, lambda: server.connections)
            _log.info("listening on %s, for %d clients at a time", url, most)
            if self.opened is not None:
                self.opened(url)
            await self._until_the_end()
            self.last_resort.begin()
            for one in doors:
                await one.stop()
            await context_of(app).clients.empty(self.drain)
        finally:
            for one in doors:
                await one.stop()
            await self._bounded(asyncio.to_thread(note.unlink, missing_ok=True), f"removing {note}")
            await self._bounded(runner.cleanup(), "closing the front door")

    async def _bounded(self, work: Awaitable[object], what: str) -> None:
        try:
            async with asyncio.timeout(2 * _CLOSE):
                await work
        except TimeoutError:
            _log.error("%s hangs; the stop continues without it", what)
        except OSError as error:
            _log.warning("%s failed: %s", what, error)

    async def _until_the_end(self) -> None:
        while self.greenroom.failure is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._stop.wait()
                return
        self._reason = "the actor system has stopped itself"

    def _asked_to_stop(self, keep_engines: float | None) -> None:
        self._keep_engines = keep_engines
        self._reason = self._reason or "a stop was requested"
        self._stop.set()

    def _signalled(self, number: signal.Signals) -> None:
        if self._stop.is_set() and number == signal.SIGHUP:
            return  # a terminal that closes says it more than once
        if self._stop.is_set():
            # A second signal ends the process at once. Engines end with their keepers, which soon miss us.
            tidying = threading.Thread(target=_remove, args=(self.greenroom.home / NOTE,), daemon=True)
            tidying.start()
            tidying.join(0.5)  # not longer: the disk may hang
            os._exit(128 + number)
        self._reason = number.name
        self._stop.set()


def _bind(greenroom: Greenroom) -> socket.socket:
    settings = greenroom.settings
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.bind, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise BadBind(f"{settings.bind} is not an address of this machine: {error.strerror}.") from None
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise BadBind(
            f"{settings.bind} can be reached from other machines, and Greenroom cannot authenticate clients "
            "yet. Listen on 127.0.0.1, behind a proxy that authenticates."
        )
    listener = socket.socket(family, kind, protocol)
    try:
        here.bind_alone(listener, address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            if greenroom.home.is_dir():
                DaemonLock(greenroom.home).release()  # HomeLocked: this data directory's daemon has the port
            raise PortTaken(settings.bind, settings.port) from None
        raise BadBind(
            f"Greenroom cannot listen on {settings.bind} port {settings.port}: {error.strerror}."
        ) from None
    listener.setblocking(False)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _write_note(note: Path, url: str, greenroom: Greenroom) -> None:
    fields: dict[str, Any] = {
        "pid": os.getpid(),
        "url": url,
        "instance_id": greenroom.instance_id,
        "version": __version__,
        "started_at": time.time(),
        "settings": values_of(greenroom.settings),
    }
    write_privately(note, (json.dumps(fields) + "\n").encode())


def _begin_threads() -> None:
    """Start the threads for blocking calls now.

    Later each would be started by the loop, which waits for it: forever, if there is no memory for it.
    """
    executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="blocking")
    together = threading.Barrier(_THREADS)
    for _ in range(_THREADS):
        executor.submit(together.wait, 10.0)
    asyncio.get_running_loop().set_default_executor(executor)


@contextlib.contextmanager
def _fresh_why(greenroom: Greenroom) -> Iterator[None]:
    """Meanwhile, what `why` needs of the journal is kept up to date while no request and no job runs."""
    journal = greenroom.system.journal
    if not isinstance(journal, SqliteJournal):
        yield
        return

    def is_idle() -> bool:
        return not greenroom.board.running() and not any(
            one.inside for one in greenroom.gates.readings().values()
        )

    freshener = Freshener(journal.files.db, lambda: journal.last_seq, is_idle)
    freshener.start()
    try:
        yield
    finally:
        freshener.stop()


def _remove(note: Path) -> None:
    with contextlib.suppress(OSError):
        note.unlink()


@contextlib.contextmanager
def _listening_on(uds: Path | None) -> Iterator[list[socket.socket]]:
    if uds is None:
        yield []
        return
    with UnixListener(uds) as listener:
        yield [listener.socket]


@contextlib.contextmanager
def _signals(handle: Callable[[signal.Signals], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` and a detached daemon have it
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


__all__ = ["BadBind", "HomeLocked", "PortTaken", "SystemStopped", "run"]
