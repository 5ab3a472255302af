"""Keeps a slot taken until the engine has stopped working for a client that left.

Engines notice a closed connection only between two batches, up to seconds later. If the slot were free by
then, an engine that is still busy would look idle and might be ended or given to others. So a request that
leaves early and is the last one inside keeps its slot until the engine is still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from greenroom.actors.gates import GateBoard
from greenroom.actors.values import Engine
from greenroom.runner.engines.process_state import wants_to_work
from greenroom.runner.engines.processes import groups

_LONGEST = 30.0
"""Seconds a place is kept at most: batches last two."""
_PAUSE = 0.015
_STILL = 2
"""Looks in a row that must find an engine still: between two tokens it is so for a moment."""


class Lingering:
    """The engines of one front door that clients have left early. Lives in one event loop."""

    def __init__(self, gates: GateBoard, engine: Callable[[str], Engine | None]) -> None:
        """`engine` finds an engine by its id."""
        self._gates = gates
        self._engine = engine
        self._left: dict[str, float] = {}
        """When each was last left early, by the loop's time."""

    def note(self, engine_id: str) -> None:
        """A client has left before its answer was complete."""
        now = asyncio.get_running_loop().time()
        self._left = {one: at for one, at in self._left.items() if at > now - _LONGEST}
        self._left[engine_id] = now

    def may_work(self, engine_id: str, request_id: str) -> bool:
        """Whether the engine may be at work for nobody once this request has left."""
        return engine_id in self._left and self._gates.inside(engine_id) <= {request_id}

    async def until_still(self, engine_id: str, request_id: str) -> None:
        """Wait until the engine is still, or others are inside, who make it busy anyway."""
        loop = asyncio.get_running_loop()
        end, still = loop.time() + _LONGEST, 0
        while still < _STILL and loop.time() < end and self.may_work(engine_id, request_id):
            engine = self._engine(engine_id)
            if engine is None or engine.state == "gone" or not engine.pid:
                break
            still = 0 if await asyncio.to_thread(_works, engine.pid) else still + 1
            await asyncio.sleep(_PAUSE)
        if still >= _STILL:
            self._left.pop(engine_id, None)


def _works(pid: int) -> bool:
    return wants_to_work(groups([pid])[pid])
