"""A backend that divides models, models of many layers, and graphics cards for them."""

from __future__ import annotations

from typing import Any

import msgspec

from greenroom.actors.scheduler.ledger import Device
from greenroom.actors.values import Model, ModelLayers
from scheduler_stage import LLAMA, model

MIB = 2**20
DIVIDES = msgspec.structs.replace(
    LLAMA,
    divides=True,
    overhead=100 * MIB,
    device_overhead=100 * MIB,
    runtimes=(("", "cuda"), ("vulkan", "vulkan")),
    layer_flags=("-ngl",),
)


def divided(name: str, layers: int, each: int = 100 * MIB) -> Model:
    """So many layers and an output, all of the same size."""
    parts = ModelLayers(weights=(each,) * layers, cache=(0,) * layers, output=each, input=MIB, largest=MIB)
    return model(name, each * (layers + 1) + MIB, layers=parts)


def card(number: int, size: int, available: int | None = None, **more: Any) -> Device:
    size, free = size * MIB, available if available is None else available * MIB
    return Device(id=f"GPU-{number}", name=f"card {number}", total=size, budget=size, available=free, **more)
