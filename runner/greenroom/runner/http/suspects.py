"""Engines that broke off, and the requests that may have crashed them: these are not sent to another.

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

from greenroom.actors.gates import Place
from greenroom.actors.values import EngineExit
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.errors import HttpRefusal

KEPT = 600.0
"""Seconds a request is remembered."""
_MOST = 4096
"""Requests that are remembered; the oldest are forgotten first."""
_ENGINES = 64
"""Engines that are remembered beyond those that run."""
_AFTERMATH = 5.0
"""Seconds during which a crash is still blamed on a request whose client has left."""
_END_WITHIN = 3.0
"""Seconds to wait for the cause of an engine's death."""
_PAUSE = 0.025
_OWN_SIGNALS = frozenset(("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS"))
_TOLD_TO = frozenset((0, 130, 143))
"""Exit codes of a program that ended after SIGINT or SIGTERM."""


def fingerprint(model_id: str, path: str, body: bytes) -> bytes:
    """What one request is known by."""
    digest = hashlib.blake2b(f"{model_id}\n{path}\n".encode(), digest_size=16)
    digest.update(body)
    return digest.digest()


def own_doing(end: EngineExit | None) -> bool:
    """Whether an engine crashed by itself: not killed or stopped from outside, and not given up by us."""
    if end is None or end.expected or end.lost or end.failure is not None:
        return False
    if end.signal:
        return end.signal in _OWN_SIGNALS
    return end.code is not None and end.code not in _TOLD_TO


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


async def lost(
    greenroom: Greenroom,
    suspects: Suspects,
    place: Place,
    asked_as: str,
    print_: Callable[[], bytes],
    when: str,
) -> HttpRefusal:
    """The refusal for an engine that broke off; a request it died of is remembered.

    `asked_as` is the model's name as the client wrote it, and `print_` makes the request's fingerprint.
    """
    in_company = suspects.in_company(place.engine_id)
    end, gone = await _end_of(greenroom, place)
    if not gone:
        suspects.lives(place.engine_id)
        greenroom.gates.doubt(place.engine_id)
        return broke_off(place, asked_as, when)
    what = f'The {place.backend} engine that served "{asked_as}" ended {when}: {_how(end)}.'
    if own_doing(end) and suspects.blame(print_(), in_company=in_company):
        return suspected(asked_as, what)
    failure = end.failure if end is not None else None
    return HttpRefusal(
        502,
        failure.code if failure is not None else "engine_died",
        what,
        advice="Send the request again; another engine will be started.",
    )


def broke_off(place: Place, asked_as: str, when: str) -> HttpRefusal:
    """The refusal for an engine that closed a connection and lives on."""
    return HttpRefusal(
        502,
        "engine_broke_off",
        f'The {place.backend} engine that serves "{asked_as}" broke off {when}.',
        advice="Send the request again.",
    )


def suspected(asked_as: str, what: str = "") -> HttpRefusal:
    """The refusal of a request that may have crashed an engine."""
    return HttpRefusal(
        422,
        "request_ended_engine",
        what or f'An engine for "{asked_as}" ended while it worked on this request.',
        advice="The request may be the cause, so it is refused for ten minutes; change it.",
    )


async def _end_of(greenroom: Greenroom, place: Place) -> tuple[EngineExit | None, bool]:
    """How an engine ended, and whether it has, once its runner knows."""
    for _ in range(round(_END_WITHIN / _PAUSE)):
        engines = greenroom.engines()
        engine = next((one for one in engines if one.spec.engine_id == place.engine_id), None)
        if engine is None or engine.state == "gone":
            return (engine.exit if engine is not None else None), True
        await asyncio.sleep(_PAUSE)
    return None, False


def _how(end: EngineExit | None) -> str:
    """How an engine ended, without anything it printed: that may be from other clients' requests."""
    if end is None:
        return "it is gone"
    if end.failure is not None:
        return end.failure.message.rstrip(".")
    if end.signal:
        return f"it was killed by {end.signal}"
    return "it is gone" if end.code is None else f"it exited with code {end.code}"
