"""The reply to one request, for as long as its client is connected."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

LOOK_SECONDS = 0.25
"""Seconds between checks of the client's connection."""


class ClientLeft(ConnectionError): ...


def has_left(connection: socket.socket) -> bool:
    """Whether the other end is closed. Received data stays unread."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Replies(queue.Queue[Any]):
    """A queue from the generating thread to the thread of one request.

    mlx-lm puts the context of the generation first (it has `stop`), then progress (tuples) and tokens.
    """

    items = 0
    """Tokens and pieces of prompts so far, over all requests: shows the health monitor that the engine
    works.
    """

    def __init__(self, connection: socket.socket | None) -> None:
        super().__init__()
        self.left = False
        self.piece: Callable[[int, float], None] | None = None
        """Told of each piece of the prompt: tokens, seconds. Set where the generating thread serves no other
        request meanwhile, so that it can be stopped by raising."""
        self._progress = (0, 0.0)
        self._connection = connection
        self._context: Any = None

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Called by the generating thread."""
        Replies.items += 1
        if hasattr(item, "stop"):
            self._context = item
        if self.left:
            self._stop()
        if self.piece is not None and isinstance(item, tuple):
            self._note_progress(self.piece, int(item[0]))
        super().put(item, block, timeout)

    def follow(self, alive: Callable[[], bool]) -> Iterator[Any]:
        """The items, until the client leaves.

        Raises:
            ClientLeft: The client has left; the generation is being stopped.
            RuntimeError: The generating thread is dead.
        """
        look_at = time.monotonic() + LOOK_SECONDS
        while True:
            try:
                item = self.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if not alive():
                    raise RuntimeError("generation thread died") from None
            else:
                yield item
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_SECONDS
                if self._connection is not None and has_left(self._connection):
                    self.leave()
                    raise ClientLeft

    def leave(self) -> None:
        """The reader is gone: stop the generation, or prevent its start."""
        self.left = True
        self._stop()

    def _note_progress(self, piece: Callable[[int, float], None], tokens: int) -> None:
        if self.left:
            raise ClientLeft
        now = time.monotonic()
        before, at = self._progress
        if at:
            piece(tokens - before, now - at)
        self._progress = (tokens, now)

    def _stop(self) -> None:
        if self._context is not None:
            self._context.stop()
