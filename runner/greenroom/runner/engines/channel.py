"""The daemon's end of the connection to one keeper: JSON lines. While it is open, the keeper keeps its
engine.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from greenroom.actors.fork import lock_for_forks, on_fork
from greenroom.runner.engines import keeper_main
from greenroom.runner.engines.keeper import MESSAGE_LIMIT
from greenroom.runner.engines.variables import cleaned
from greenroom.runner.errors import JobFailed
from greenroom.runner.systems import here

_RECEIVE_BYTES = 262_144
_DETACHED: list[subprocess.Popen[bytes]] = []
"""Keepers left running; polled so that a long-lived host program collects no zombies."""

_DETACHED_LOCK = lock_for_forks()


def _reap_detached() -> None:
    with _DETACHED_LOCK:
        _DETACHED[:] = [process for process in _DETACHED if process.poll() is None]


class KeeperGone(Exception):
    """The keeper closed the connection or refused it."""


class Channel:
    """One connection to a keeper. Sends from any thread; receives on one."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._socket = sock
        self._process = process
        self._sending = threading.Lock()
        self._received = b""
        self._closed = False
        on_fork(self)

    def forked(self) -> None:
        """A child that kept this connection open would keep the engine alive after this process has ended."""
        self._closed = True
        self._socket.close()

    @classmethod
    def spawn(cls) -> Channel:
        """Start a keeper that waits for its `start`; it exits if this process ends first."""
        _reap_detached()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # -S: it imports only the standard library, and starts some milliseconds sooner.
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(keeper_main.__file__))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=cleaned({}),  # it outlives us, and the user's other processes can read its variables
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(ours, process)

    @classmethod
    def connect(cls, path: str, keeper_pid: int) -> Channel:
        """Connect to a running keeper.

        Raises:
            KeeperGone: Nothing, or another process, listens there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(5.0)
            sock.connect(path)
            sock.setblocking(True)
        except OSError as problem:
            sock.close()
            raise KeeperGone(str(problem)) from problem
        if here.peer_pid(sock) not in (0, keeper_pid):
            sock.close()
            raise KeeperGone("another process listens on the keeper's socket")
        return cls(sock)

    @property
    def pid(self) -> int:
        """Of a keeper we spawned; 0 for one we connected to."""
        return self._process.pid if self._process is not None else 0

    def alive(self) -> bool:
        """Whether a keeper we spawned still runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill a keeper we spawned: our own child, so its pid cannot have been reused."""
        if self.alive() and self._process is not None:
            self._process.kill()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, op: str, **fields: Any) -> None:
        """Send one message.

        Raises:
            KeeperGone: The keeper has ended.
            JobFailed: The command line is far too long.
        """
        data = json.dumps({"op": op, **fields}).encode() + b"\n"
        if len(data) > MESSAGE_LIMIT:
            raise JobFailed.permanent(
                "command_line_too_long",
                f"The engine's command line and environment take {len(data) / 1e6:.1f} MB, more than "
                "the system can pass to a program.",
                advice="Shorten the model's runtime flags.",
            )
        with self._sending:
            try:
                self._socket.sendall(data)
            except OSError as problem:
                raise KeeperGone(str(problem)) from problem

    def receive(self) -> list[dict[str, Any]]:
        """Complete messages received so far, without waiting; raises `KeeperGone` at the end."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError as problem:
            raise KeeperGone(str(problem)) from problem
        return self._messages(data)

    def await_event(self, event: str, seconds: float) -> dict[str, Any]:
        """Wait for one event, dropping earlier ones; raises `KeeperGone` if it does not come in time."""
        self._socket.settimeout(seconds)
        try:
            while True:
                for message in self._messages(self._socket.recv(_RECEIVE_BYTES)):
                    if message.get("event") == event:
                        return message
        except OSError as problem:
            raise KeeperGone(str(problem)) from problem
        finally:
            self._socket.setblocking(True)

    def _messages(self, data: bytes) -> list[dict[str, Any]]:
        if not data:
            raise KeeperGone("the keeper has ended")
        *lines, self._received = (self._received + data).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def close(self, *, reap: bool = True) -> None:
        """Close the connection; with `reap`, wait for a keeper that ends now, or kill it."""
        if self._closed:
            return
        self._closed = True
        self._socket.close()
        if self._process is None:
            return
        if not reap:
            with _DETACHED_LOCK:
                _DETACHED.append(self._process)
            return
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()  # our own child, not reaped: its pid cannot have been reused
            self._process.wait(5.0)
