"""The progress board: the latest progress of each job. Never stored."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from greenroom.actors.fork import on_fork
from greenroom.actors.values import Progress

Listener = Callable[[Progress], None]


def install_job(backend: str) -> str:
    return f"install/{backend}"


def pull_job(reference: str) -> str:
    return f"pull/{reference}"


def push_job(reference: str) -> str:
    return f"push/{reference}"


def load_job(engine_id: str) -> str:
    return f"load/{engine_id}"


def request_job(request_id: str) -> str:
    return f"request/{request_id}"


class ProgressBoard:
    """Thread-safe. Effects publish, the front door reads and listens."""

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}
        self._listeners: dict[str, list[Listener]] = {}
        self._lock = threading.Lock()
        on_fork(self)

    def forked(self) -> None:
        self._lock = threading.Lock()

    def publish(self, progress: Progress) -> None:
        """Make this the latest of its job, and call its listeners in this thread."""
        with self._lock:
            self._latest[progress.job] = progress
            listeners = tuple(self._listeners.get(progress.job, ()))
        for listener in listeners:
            listener(progress)

    def clear(self, job: str) -> None:
        with self._lock:
            self._latest.pop(job, None)

    def latest(self, job: str) -> Progress | None:
        return self._latest.get(job)

    def running(self) -> dict[str, Progress]:
        with self._lock:
            return dict(self._latest)

    def listen(self, job: str, listener: Listener) -> Callable[[], None]:
        """Call `listener`, which must be quick, for each progress of a job; returns what stops that."""
        with self._lock:
            self._listeners.setdefault(job, []).append(listener)

        def stop() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._listeners.get(job, []).remove(listener)
                if not self._listeners.get(job):
                    self._listeners.pop(job, None)

        return stop
