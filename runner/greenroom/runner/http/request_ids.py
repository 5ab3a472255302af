"""Ids for requests: unique for ever, since they stand in the journal as causes."""

from __future__ import annotations

import itertools
import secrets


class RequestIds:
    """A random stem and a count."""

    def __init__(self) -> None:
        self._stem = secrets.token_hex(4)
        self._count = itertools.count(1)

    def next(self) -> str:
        """An id nobody has had."""
        return f"r-{self._stem}-{next(self._count)}"
