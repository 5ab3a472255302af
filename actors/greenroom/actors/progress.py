"""The board: the latest progress of each job, for whoever waits. Nothing of it is stored."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from greenroom.actors.fork import on_fork
from greenroom.actors.values import Progress

Listener = Callable[[Progress], None]


def install_job(backend: str) -> str:
    """The board's key for the installation of a backend."""
    return f"install/{backend}"


def pull_job(reference: str) -> str:
    """The board's key for the pull of a reference."""
    return f"pull/{reference}"


def push_job(reference: str) -> str:
    """The board's key for a push to a reference."""
    return f"push/{reference}"


def load_job(engine_id: str) -> str:
    """The board's key for the start of an engine."""
    return f"load/{engine_id}"


def request_job(request_id: str) -> str:
    """The board's key for what a request waits for."""
    return f"request/{request_id}"


class ProgressBoard:
    """Thread-safe. Effects publish, the front door reads and listens."""

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}
        self._listeners: dict[str, list[Listener]] = {}
        self._lock = threading.Lock()
        on_fork(self)

    def forked(self) -> None:
        """A child has a copy, which nobody writes to."""
        self._lock = threading.Lock()

    def publish(self, progress: Progress) -> None:
        """Make this the latest of its job and tell whoever listens, in the calling thread."""
        with self._lock:
            self._latest[progress.job] = progress
            listeners = tuple(self._listeners.get(progress.job, ()))
        for listener in listeners:
            listener(progress)

    def clear(self, job: str) -> None:
        """The job has ended."""
        with self._lock:
            self._latest.pop(job, None)

    def latest(self, job: str) -> Progress | None:
        """Where the job is, if it is at all."""
        return self._latest.get(job)

    def running(self) -> dict[str, Progress]:
        """All jobs."""
        with self._lock:
            return dict(self._latest)

    def listen(self, job: str, listener: Listener) -> Callable[[], None]:
        """Hear of each progress of a job until the returned function is called. Must be quick."""
        with self._lock:
            self._listeners.setdefault(job, []).append(listener)

        def stop() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._listeners.get(job, []).remove(listener)
                if not self._listeners.get(job):
                    self._listeners.pop(job, None)

        return stop
