"""What depends on a running Greenroom and has to end before it: front doors, clients inside the program."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

_log = logging.getLogger(__name__)


class Attachment(Protocol):
    def close_from_elsewhere(self) -> None:
        """End it from any thread, within a bound. Idempotent."""


T = TypeVar("T", bound=Attachment)


class Attachments:
    """Those of one Greenroom. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closing = threading.Lock()
        self._all: list[Attachment] = []

    def add(self, one: Attachment) -> None:
        with self._lock:
            self._all.append(one)

    def remove(self, one: Attachment) -> None:
        """It has ended by itself."""
        with self._lock:
            if one in self._all:
                self._all.remove(one)

    def the_one(self, kind: type[T], make: Callable[[], T]) -> T:
        """The one of this class, which is made if there is none."""
        with self._lock:
            for one in self._all:
                if isinstance(one, kind):
                    return one
            made = make()
            self._all.append(made)
            return made

    def close(self) -> None:
        """End them all, the last one first: it may depend on those before it."""
        with self._closing:  # of two stops at once, the second waits
            while True:
                with self._lock:
                    if not self._all:
                        return
                    one = self._all.pop()
                try:
                    one.close_from_elsewhere()
                except Exception:  # noqa: BLE001 - one that fails must not keep the others, nor the stop
                    _log.exception("%s could not be closed", type(one).__name__)
