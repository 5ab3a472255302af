"""The daemon's end of its connection to one keeper: JSON lines, and the life line itself."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

from greenroom.actors.kernel.fork import on_fork
from greenroom.runner.engines import keeper_main
from greenroom.runner.engines.environment import cleaned
from greenroom.runner.engines.keeper import MESSAGE_LIMIT
from greenroom.runner.errors import JobFailed
from greenroom.runner.systems import here

_RECEIVE_BYTES = 262_144
_DETACHED: list[subprocess.Popen[bytes]] = []
"""Keepers we left running; polled now and then so that a long-lived host program collects no zombies."""

_DETACHED_LOCK = threading.Lock()


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
        """A child that kept the life line open would keep the engine alive beyond our end."""
        self._closed = True
        self._socket.close()

    @classmethod
    def spawn(cls) -> Channel:
        """Start a keeper that waits for its `start`; it ends by itself when we are gone before that."""
        _reap_detached()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # -S: it imports nothing but the standard library, and is ready some milliseconds sooner.
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(keeper_main.__file__))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=cleaned({}),  # it outlives us, and what it sees others of this user can read
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
        """Connect to a running keeper; raises `KeeperGone` when nobody, or somebody else, is there."""
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
            raise KeeperGone("the keeper's socket is served by a stranger")
        return cls(sock)

    @property
    def pid(self) -> int:
        """Of a keeper we spawned; 0 for one we connected to."""
        return self._process.pid if self._process is not None else 0

    def alive(self) -> bool:
        """Whether a keeper we spawned still runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill a keeper we spawned: our own child, so its number cannot be anybody else's."""
        if self.alive() and self._process is not None:
            self._process.kill()

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def send(self, op: str, **fields: Any) -> None:
        """Send one message; raises `KeeperGone`, and `JobFailed` for a command line that is far too long."""
        data = json.dumps({"op": op, **fields}).encode() + b"\n"
        if len(data) > MESSAGE_LIMIT:
            raise JobFailed.permanent(
                "command_line_too_long",
                f"The engine's command line and environment have {len(data) / 1e6:.1f} MB, more than any "
                "system passes to a program.",
                advice="Shorten the model's runtime flags.",
            )
        with self._sending:
            try:
                self._socket.sendall(data)
            except OSError as problem:
                raise KeeperGone(str(problem)) from problem

    def receive(self) -> list[dict[str, Any]]:
        """Whole messages that have come, without waiting; raises `KeeperGone` at the end."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError as problem:
            raise KeeperGone(str(problem)) from problem
        if not data:
            raise KeeperGone("the keeper has ended")
        *lines, self._received = (self._received + data).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def await_event(self, event: str, seconds: float) -> dict[str, Any]:
        """Wait for one event before anybody else receives; others that come first are dropped.

        Raises `KeeperGone` when it does not come in time.
        """
        waiting: deque[dict[str, Any]] = deque()
        self._socket.settimeout(seconds)
        try:
            while True:
                while waiting:
                    message = waiting.popleft()
                    if message.get("event") == event:
                        return message
                data = self._socket.recv(_RECEIVE_BYTES)
                if not data:
                    raise KeeperGone("the keeper has ended")
                *lines, self._received = (self._received + data).split(b"\n")
                waiting.extend(json.loads(line) for line in lines if line)
        except OSError as problem:
            raise KeeperGone(str(problem)) from problem
        finally:
            self._socket.setblocking(True)

    def close(self, *, reap: bool = True) -> None:
        """Let go of the life line; with `reap`, of a keeper that ends now: wait for it, or kill it."""
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
            self._process.kill()  # our own child, not reaped: its pid cannot be anybody else's
            self._process.wait(5.0)
