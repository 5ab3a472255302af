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
"""Engines that are remembered beyond those that run."""
_AFTERMATH = 5.0
"""Seconds during which a crash is still blamed on a request whose client has left."""


def fingerprint(model_id: str, path: str, body: bytes) -> bytes:
    digest = hashlib.blake2b(f"{model_id}\n{path}\n".encode(), digest_size=16)
    digest.update(body)
    return digest.digest()


class Suspects:
    """All of one front context. Lives in one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        """How many crashes each request was inside at (alone counts two), and until when that is kept."""
        self._inside: dict[str, dict[str, float]] = {}
        """Requests inside each engine; for those that left early, until when it may die of them."""
        self._company: dict[str, bool] = {}
        """Engines that broke off, and whether several were inside then."""
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._deaths)

    @property
    def engines(self) -> int:
        """How many engines it remembers."""
        return len(self._inside.keys() | self._company.keys())

    def counts(self, print_: bytes) -> int:
        """Deaths this request was inside at: two make it a suspect."""
        deaths, until = self._deaths.get(print_, (0, 0.0))
        return deaths if until > self._clock() else 0

    @property
    def turn(self) -> asyncio.Lock:
        """Held by the candidate that is being tried again."""
        return self._turn

    def enter(self, engine_id: str, request_id: str) -> None:
        if len(self._inside) > _ENGINES:
            for gone in [one for one, inside in self._inside.items() if not self._present(inside)]:
                del self._inside[gone]
        self._inside.setdefault(engine_id, {})[request_id] = 0.0

    def leave(self, engine_id: str, request_id: str, *, early: bool) -> None:
        """Its answer is whole, or it has been let go of `early`."""
        inside = self._inside.get(engine_id, {})
        if early and request_id in inside:
            inside[request_id] = self._clock() + _AFTERMATH
        else:
            inside.pop(request_id, None)
        if not inside:
            self._inside.pop(engine_id, None)

    def in_company(self, engine_id: str) -> bool:
        """Whether several requests were inside an engine when it died; later calls give the same answer."""
        known = self._company.get(engine_id)
        if known is None:
            known = self._company[engine_id] = self._present(self._inside.get(engine_id, {})) > 1
            while len(self._company) > _ENGINES:
                del self._company[next(iter(self._company))]
        return known

    def lives(self, engine_id: str) -> None:
        """The engine only closed a connection."""
        self._company.pop(engine_id, None)

    def _present(self, inside: dict[str, float]) -> int:
        now = self._clock()
        return sum(until == 0 or until > now for until in inside.values())

    def blame(self, print_: bytes, *, in_company: bool) -> bool:
        """Count an engine's own death against a request that was inside. Whether it is a suspect now."""
        deaths = min(2, self.counts(print_) + (1 if in_company else 2))
        self._deaths[print_] = deaths, self._clock() + KEPT
        self._deaths.move_to_end(print_)
        while len(self._deaths) > _MOST:
            self._deaths.popitem(last=False)
        return deaths > 1
