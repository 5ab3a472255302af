"""Child processes that ask drivers: limited in time and output, and never trusted to end."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 10.0
"""An idle driver is loaded first, which may take seconds."""
_AGAIN = 600.0
"""Seconds for which a program that hung is not started again."""
_MOST_OUTPUT = 2**20
_MOST_ERRORS = 4_000
_REAPED_WITHIN = 0.2


@dataclass(frozen=True)
class Told:
    """What a child process printed, and how it ended."""

    output: str = ""
    errors: str = ""
    """The beginning of its standard error, at most 4,000 characters."""
    code: int | None = 0
    """As in `subprocess`, negative for a signal; None if it could not be started."""
    hung: bool = False
    """It was killed after its seconds, or has hung before and was not started again."""

    @property
    def is_whole(self) -> bool:
        return self.code == 0 and not self.hung


@dataclass
class Children:
    """Starts programs, and remembers which of them hang. Any thread may use it."""

    seconds: float = SECONDS
    again: float = _AGAIN
    _hung: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> Told:
        """Run it to its end, or to the end of its seconds. Raises nothing.

        A program is known by its path, a script by its own: one that hangs costs its seconds once, and is
        tried again after ten minutes.
        """
        key = next((word for word in argv if word.endswith(".py")), argv[0])
        with self._lock:
            if time.monotonic() < self._hung.get(key, 0.0):
                return Told(hung=True)
        told = _run(argv, env, self.seconds)
        if told.hung:
            with self._lock:
                self._hung[key] = time.monotonic() + self.again
        return told

    def forget(self) -> None:
        """Try again whatever has hung."""
        with self._lock:
            self._hung.clear()


def _run(argv: Sequence[str], env: Mapping[str, str] | None, seconds: float) -> Told:
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            cwd="/",
            start_new_session=True,
        )
    except OSError as problem:
        return Told(errors=f"{Path(argv[0]).name}: {problem.strerror}", code=None)
    assert child.stdout is not None
    assert child.stderr is not None
    kept = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    most = {child.stdout.fileno(): _MOST_OUTPUT, child.stderr.fileno(): 4 * _MOST_ERRORS}
    deadline = time.monotonic() + seconds
    with child.stdout, child.stderr, selectors.DefaultSelector() as waiting:
        for pipe in kept:
            waiting.register(pipe, selectors.EVENT_READ)
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                chunk = os.read(key.fd, 65_536)
                if not chunk:
                    waiting.unregister(key.fd)
                room = most[key.fd] - len(kept[key.fd])
                kept[key.fd] += chunk[: max(0, room)]
        output, errors = (bytes(one).decode("utf-8", "replace") for one in kept.values())
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(max(0.0, deadline - time.monotonic()))
            return Told(output, errors[:_MOST_ERRORS], code)
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        # A process that waits inside a driver does not end even then; it is left to the system.
        child.wait(_REAPED_WITHIN)
    return Told(output, errors[:_MOST_ERRORS], code=None, hung=True)
