"""The daemon's log: a thread writes it, so that a disk or terminal that hangs blocks nothing else.

Lines that do not fit into the queue are counted; the count is logged once lines can be written again.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from greenroom.actors.characters import visible

_ROOM = 5_000
"""Lines that wait at most, for each place they go to."""
LOG_BYTES = 4_000_000
"""Of `daemon.log`; as many are kept in `daemon.log.1`."""
_CLOSE_WITHIN = 2.0
"""Seconds the last lines have to be written."""
_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"
_DATE = "%Y-%m-%d %H:%M:%S"

_ESCAPES = {number: f"\\x{number:02x}" for number in (*range(0x20), *range(0x7F, 0xA0))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
}


class OneLine(logging.Formatter):
    """A message is one line, whatever a client has put into it; tracebacks follow it indented as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line, in which control characters are shown and do nothing."""
        return visible(super().formatMessage(record).translate(_ESCAPES))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's own name
        """One record's lines; an exception may quote foreign text."""
        return visible(super().formatException(ei), lines=True)


class DaemonLogging:
    """Where the daemon's lines go. `close` it in the end; it waits for a bounded time."""

    def __init__(self, file: Path | None, *, terminal: bool) -> None:
        """`file` is opened with the first line, so that a daemon that may not run never touches it."""
        self._handlers = [Handed(_File(file))] if file is not None else []
        if terminal:
            self._handlers.append(Handed(_Terminal()))
        # Its own way out would wait for a disk that hangs.
        logging.raiseExceptions = False
        logging.basicConfig(level=logging.WARNING, handlers=self._handlers, force=True)

    def close(self) -> None:
        """Write what waits, for a moment at most."""
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
        for handler in self._handlers:
            handler.finish(_CLOSE_WITHIN)


class Handed(logging.Handler):
    """Writes each line on a separate thread, which may be slow."""

    def __init__(self, place: _Place, room: int = _ROOM) -> None:
        super().__init__()
        self.setFormatter(OneLine(_FORMAT, _DATE))
        self._lines: queue.Queue[str | None] = queue.Queue(room)
        self._place = place
        self.lost = 0
        """Lines that could not be written and have not been reported."""
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits."""
        try:
            # Here and not on the thread: what the arguments show may change at once.
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.lost += 1
        except Exception:  # noqa: BLE001 - like logging's own handlers: a bad line must not end its thread
            self.handleError(record)

    def finish(self, within: float) -> None:
        """Write what waits, for so many seconds at most."""
        try:
            self._lines.put(None, timeout=within)
        except queue.Full:
            return
        self._thread.join(within)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            lost, self.lost = self.lost, 0
            if lost and not self._place.write(self._notice(lost)):
                self.lost += lost
            if not self._place.write(line):
                self.lost += 1

    def _notice(self, lost: int) -> str:
        text = f"{lost} lines are missing here because they could not be written"
        return self.format(logging.LogRecord("greenroom.log", logging.WARNING, "", 0, text, None, None))


class _Place(ABC):
    @abstractmethod
    def write(self, line: str) -> bool:
        """Write one; whether it was possible. Blocks as long as the system does."""


class _File(_Place):
    """`daemon.log`, which is rotated when it is long; only its owner may read it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = -1
        self._size = 0

    def write(self, line: str) -> bool:
        content = f"{line}\n".encode("utf-8", "backslashreplace")
        try:
            if self._descriptor >= 0 and self._size + len(content) > LOG_BYTES:
                os.close(self._descriptor)
                self._descriptor = -1
                self._file.replace(self._file.with_name(f"{self._file.name}.1"))
            if self._descriptor < 0:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                self._descriptor = os.open(self._file, flags, 0o600)
                os.fchmod(self._descriptor, 0o600)
                self._size = os.fstat(self._descriptor).st_size
            self._size += os.write(self._descriptor, content)
        except OSError:
            return False
        return True


class _Terminal(_Place):
    """Standard error: not through Python's buffers, whose locks would be held by a write that hangs."""

    def write(self, line: str) -> bool:
        left = f"{line}\n".encode("utf-8", "backslashreplace")
        try:
            while left:
                left = left[os.write(2, left) :]
        except OSError:
            return False
        return True
