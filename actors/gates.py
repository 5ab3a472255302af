"""Gates: who is inside which engine. They outlive a rebuild of the scheduler.

The front door enters the gate of a ready engine without a message or a commit, and leaves it whatever
happened. Only the scheduler opens and closes gates, and reserves a place for a request it grants.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

from greenroom.actors.facts import Mode
from greenroom.actors.kernel.fork import on_fork

_NAMED = 3
"""Requests of a gate that a reading names."""


class Place(NamedTuple):
    """A request's place inside an engine."""

    engine_id: str
    backend: str
    endpoint: str


class LastByte:
    """When an engine last sent anything, on the monotonic clock.

    Whoever reads an engine's answers writes `at` for every piece, without a lock: that must cost nothing.
    """

    __slots__ = ("asked_at", "asked_since", "at")

    def __init__(self, at: float = 0.0) -> None:
        self.at = at
        self.asked_at = 0.0
        """When a request last entered an empty engine; what `at` is then."""
        self.asked_since = at
        """When the first one entered after the last byte."""

    def ask(self, now: float) -> None:
        """A request has entered an empty engine: silence counts from the question on.

        Requests that come and go without an answer do not begin it anew.
        """
        if self.at != self.asked_at:
            self.asked_since = now
        self.at = self.asked_at = now

    @property
    def unanswered_since(self) -> float:
        """When the first question was asked that no byte has followed; 0 when there is none."""
        return self.asked_since if self.at == self.asked_at else 0.0


class GateReading(NamedTuple):
    """One gate at one moment."""

    open: bool
    inside: int
    idle_since: float
    """Monotonic second since which nobody has been inside; meaningless while somebody is."""
    served: int
    """Requests that have left it."""
    quiet_since: float = 0.0
    """Monotonic second of the last byte that came out, or of the first entry if that was later."""
    some: tuple[str, ...] = ()
    """Ids of some of the requests inside, for people."""
    unanswered_since: float = 0.0
    """Monotonic second of the first entry that no byte has followed; 0 when there is none."""


class _Gate:
    __slots__ = ("backend", "endpoint", "idle_since", "inside", "key", "last_byte", "open", "served")

    def __init__(self, key: tuple[str, Mode], backend: str, endpoint: str, now: float) -> None:
        self.key = key
        self.backend = backend
        self.endpoint = endpoint
        self.open = True
        self.inside: set[str] = set()
        self.idle_since = now
        self.served = 0
        self.last_byte = LastByte(now)


class GateBoard:
    """All gates. Thread-safe; nothing in here waits."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`monotonic` is what idle time is counted by, as the scheduler's clock has it."""
        self._gates: dict[str, _Gate] = {}
        self._places: dict[str, str] = {}
        self._lock = threading.Lock()
        self._monotonic = monotonic
        self.on_empty: Callable[[str], None] | None = None
        """Called with the engine's id, outside the lock, when the last request has left it."""
        on_fork(self)

    def forked(self) -> None:
        """A child has no engines: they are its parent's."""
        self._lock = threading.Lock()
        self._gates, self._places, self.on_empty = {}, {}, None

    # the scheduler's side

    def open(self, engine_id: str, model_id: str, mode: Mode, backend: str, endpoint: str) -> None:
        """Let requests for this model in this mode enter. Harmless when it is open."""
        with self._lock:
            gate = self._gates.get(engine_id)
            if gate is None:
                self._gates[engine_id] = _Gate((model_id, mode), backend, endpoint, self._monotonic())
            else:
                gate.open = True

    def close(self, engine_id: str) -> None:
        """Let nobody else in; who is inside stays."""
        with self._lock:
            gate = self._gates.get(engine_id)
            if gate is not None:
                gate.open = False

    def remove(self, engine_id: str) -> None:
        """The engine is gone, and with it whatever was inside."""
        with self._lock:
            gate = self._gates.pop(engine_id, None)
            for request_id in gate.inside if gate is not None else ():
                self._places.pop(request_id, None)

    def keep(self, engine_ids: Iterable[str]) -> None:
        """Remove the gates of all engines but these."""
        wanted = set(engine_ids)
        with self._lock:
            gone = [known for known in self._gates if known not in wanted]
        for engine_id in gone:
            self.remove(engine_id)

    def reserve(self, engine_id: str, request_id: str) -> bool:
        """Put a granted request inside, as long as the gate is open."""
        with self._lock:
            gate = self._gates.get(engine_id)
            if gate is None or not gate.open:
                return False
            self._put_inside(gate, engine_id, request_id)
            return True

    def readings(self) -> dict[str, GateReading]:
        """All gates at this moment."""
        with self._lock:
            return {
                engine_id: GateReading(
                    gate.open,
                    len(gate.inside),
                    gate.idle_since,
                    gate.served,
                    gate.last_byte.at,
                    tuple(islice(gate.inside, _NAMED)),
                    unanswered_since=gate.last_byte.unanswered_since,
                )
                for engine_id, gate in self._gates.items()
            }

    # the front door's side

    def enter(self, model_id: str, mode: Mode, backend: str, request_id: str) -> Place | None:
        """Go into an open gate of this model and mode (and, unless empty, backend), if there is one."""
        with self._lock:
            for engine_id, gate in self._gates.items():
                if gate.open and gate.key == (model_id, mode) and backend in ("", gate.backend):
                    self._put_inside(gate, engine_id, request_id)
                    return Place(engine_id, gate.backend, gate.endpoint)
        return None

    def leave(self, request_id: str) -> None:
        """Go out, wherever this request is. Idempotent, never fails."""
        with self._lock:
            engine_id = self._places.pop(request_id, None)
            gate = self._gates.get(engine_id) if engine_id is not None else None
            if gate is None or engine_id is None:
                return
            gate.inside.discard(request_id)
            gate.served += 1
            empty = not gate.inside
            if empty:
                gate.idle_since = self._monotonic()
        if empty and self.on_empty is not None:
            self.on_empty(engine_id)

    def last_byte(self, engine_id: str) -> LastByte:
        """The clock to be set for every piece of an answer this engine sends."""
        gate = self._gates.get(engine_id)
        return gate.last_byte if gate is not None else LastByte()

    def inside(self, engine_id: str) -> frozenset[str]:
        """The ids of the requests inside an engine."""
        with self._lock:
            gate = self._gates.get(engine_id)
            return frozenset(gate.inside) if gate is not None else frozenset()

    def _put_inside(self, gate: _Gate, engine_id: str, request_id: str) -> None:
        # A request has one place: were it in two, leaving would free only one of them.
        other = self._gates.get(self._places.get(request_id, engine_id))
        if other is not None and other is not gate:
            other.inside.discard(request_id)
        if not gate.inside:
            gate.last_byte.ask(time.monotonic())
        gate.inside.add(request_id)
        self._places[request_id] = engine_id
