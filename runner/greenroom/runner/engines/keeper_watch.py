"""One thread that waits for messages from all keepers, for their end, and for deadlines."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from greenroom.runner.engines.channel import KeeperGone
from greenroom.runner.engines.handle import Handle

_log = logging.getLogger(__name__)


class KeeperWatch:
    """Calls back on its own thread, the only one that registers, receives on and closes channels."""

    def __init__(
        self,
        heard: Callable[[Handle, dict[str, Any]], None],
        gone: Callable[[Handle], None],
        overdue: Callable[[Handle], None],
    ) -> None:
        self._heard = heard
        self._gone = gone
        self._overdue = overdue
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._wakeup_write = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_write.setblocking(False)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._new: list[Handle] = []
        self._leaving: list[tuple[Handle, threading.Event]] = []
        self._watched: set[Handle] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine-watch", daemon=True)
        self._thread.start()

    def add(self, handle: Handle) -> None:
        """Watch an engine that now has a channel."""
        with self._lock:
            self._new.append(handle)
        self.wake()

    def leave(self, handle: Handle) -> None:
        """Detach from an engine that keeps running: close its connection without reporting an end."""
        done = threading.Event()
        with self._lock:
            self._leaving.append((handle, done))
        self.wake()
        done.wait(5.0)

    def wake(self) -> None:
        """Check again: an engine was added or a deadline set."""
        try:
            self._wakeup_write.send(b"!")
        except OSError:
            return  # closed, or so full that it will wake anyway

    def close(self) -> None:
        """End the thread; closing the remaining channels starts their keepers' grace."""
        with self._lock:
            self._closed = True
        self.wake()
        self._thread.join(10.0)

    def _run(self) -> None:
        while True:
            with self._lock:
                new, self._new = self._new, []
                leaving, self._leaving = self._leaving, []
                closed = self._closed
            for handle in new:
                self._begin(handle)
            for handle, done in leaving:
                self._drop(handle, reap=False)
                done.set()
            if closed:
                break
            for key, _ in self._selector.select(self._timeout()):
                if key.data is None:
                    self._wakeup.recv(4096)
                elif key.data in self._watched:
                    self._receive(key.data)
            now = time.monotonic()
            for handle in [one for one in self._watched if 0 < one.kill_at <= now]:
                handle.kill_at = now + 5.0
                self._guarded(partial(self._overdue, handle))
        for handle in list(self._watched):
            self._drop(handle, reap=handle.over.is_set())
        self._selector.close()
        self._wakeup.close()
        self._wakeup_write.close()

    def _begin(self, handle: Handle) -> None:
        assert handle.channel is not None
        try:
            self._selector.register(handle.channel, selectors.EVENT_READ, handle)
        except (OSError, ValueError, KeyError):
            # Its end would go unnoticed: handle it as if its keeper had gone.
            _log.exception("engine %s cannot be watched", handle.engine_id)
            handle.channel.close(reap=True)
            self._guarded(partial(self._gone, handle))
            return
        self._watched.add(handle)

    def _timeout(self) -> float | None:
        due = [handle.kill_at for handle in self._watched if handle.kill_at > 0]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _receive(self, handle: Handle) -> None:
        assert handle.channel is not None
        try:
            for message in handle.channel.receive():
                self._guarded(partial(self._heard, handle, message))
        except (KeeperGone, ValueError):
            self._drop(handle, reap=True)
            self._guarded(partial(self._gone, handle))

    def _drop(self, handle: Handle, *, reap: bool) -> None:
        if handle not in self._watched or handle.channel is None:
            return
        self._watched.discard(handle)
        self._selector.unregister(handle.channel)
        handle.channel.close(reap=reap)

    def _guarded(self, call: Callable[[], None]) -> None:
        # One engine's odd message must not stop the watch over the others.
        try:
            call()
        except Exception:  # noqa: BLE001 - see above
            _log.exception("engine watch: a callback failed")
