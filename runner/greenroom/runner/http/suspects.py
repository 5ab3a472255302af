"""Requests that may have crashed engines are not sent to another.

A request is a suspect when an engine crashed with this one alone inside, or when it was inside at two such
crashes. It is remembered as a hash for ten minutes. Requests that were inside together at one crash are
*candidates*: they are sent again one at a time, so that none is blamed for another's crash.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

KEPT = 600.0
"""Seconds a request is remembered."""
_MOST = 4096
"""Requests that are remembered; the oldest are forgotten first."""
_ENGINES = 64
"""Engines that broke off and are remembered."""


def fingerprint(model_id: str, path: str, body: bytes) -> bytes:
    digest = hashlib.blake2b(f"{model_id}\n{path}\n".encode(), digest_size=16)
    digest.update(body)
    return digest.digest()


class Suspects:
    """All of one front context. Lives in one event loop."""

    def __init__(self, inside: Callable[[str], int], clock: Callable[[], float] = time.monotonic) -> None:
        """`inside` counts the requests that an engine may have died of."""
        self._clock = clock
        self._count_inside = inside
        self.deaths: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        """How many crashes each request was inside at (alone counts two), and until when that is kept."""
        self._company: dict[str, bool] = {}
        """Engines that broke off, and whether several were inside then."""
        self.turn = asyncio.Lock()
        """Held by the candidate that is being tried again."""

    def counts(self, print_: bytes) -> int:
        """Deaths this request was inside at: two make it a suspect."""
        deaths, until = self.deaths.get(print_, (0, 0.0))
        return deaths if until > self._clock() else 0

    def in_company(self, engine_id: str) -> bool:
        """Whether several requests were inside an engine when it died; later calls give the same answer."""
        known = self._company.get(engine_id)
        if known is None:
            known = self._company[engine_id] = self._count_inside(engine_id) > 1
            while len(self._company) > _ENGINES:
                del self._company[next(iter(self._company))]
        return known

    def lives(self, engine_id: str) -> None:
        """The engine only closed a connection."""
        self._company.pop(engine_id, None)

    def blame(self, print_: bytes, *, in_company: bool) -> bool:
        """Count an engine's own death against a request that was inside. Whether it is a suspect now."""
        deaths = min(2, self.counts(print_) + (1 if in_company else 2))
        self.deaths[print_] = deaths, self._clock() + KEPT
        self.deaths.move_to_end(print_)
        while len(self.deaths) > _MOST:
            self.deaths.popitem(last=False)
        return deaths > 1
