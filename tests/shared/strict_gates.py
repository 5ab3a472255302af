"""Real gates that no test's scheduler may grant a place in while they are closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenroom.actors.gates import GateBoard


class StrictGates(GateBoard):
    def __init__(self, monotonic: Callable[[], float]) -> None:
        super().__init__(monotonic, monotonic)

    def reserve(self, engine_id: str, request_id: str, *more: Any, **named: Any) -> bool:
        granted = super().reserve(engine_id, request_id, *more, **named)
        assert granted, f"{request_id} was granted a closed gate"
        return granted
