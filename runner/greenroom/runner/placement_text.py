"""Where the layers of a model lie, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from greenroom.actors.values import Engine, LayersOn

_MAKERS = re.compile(r"^(?:NVIDIA (?:GeForce )?|AMD (?:Radeon )?|Intel(?:\(R\))? )")


def where(engine: Engine, names: Mapping[str, str]) -> str:
    """`28/37 on RTX 4070`, `processor`, or a device's name; empty where the engine decides for itself.

    `names`: device → its name.
    """
    spec, loaded = engine.spec, engine.loaded
    if loaded is not None and engine.has_missed_layers:
        return f"{loaded.layers}/{spec.layers} on devices" if loaded.layers else "processor"
    if not spec.layers:
        return _short(spec.device, names) if spec.device else ""
    parts = [f"{one.layers}/{spec.layers} on {_short(one.device, names)}" for one in spec.placement]
    return ", ".join(parts) or "processor"


def shortfall(engine: Engine, names: Mapping[str, str]) -> str:
    """A sentence when less of it lies on devices than was planned, or than could; empty otherwise.

    `names`: as above, of the devices that could compute.
    """
    spec, loaded = engine.spec, engine.loaded
    if engine.state in ("stopping", "gone") or not spec.layers:
        return ""
    if loaded is not None and engine.has_missed_layers:
        reason = f": {loaded.reason}" if loaded.reason else ""
        return (
            f"{spec.model_ref} has {loaded.layers} of {spec.layers} layers on devices, and {spec.on_devices} "
            f"were planned{reason}."
        )
    if not names or spec.on_devices == spec.layers:
        return ""
    if not spec.placement:
        return f"{spec.model_ref} is computed by the processor."
    return f"{spec.model_ref} has {spec.on_devices} of {spec.layers} layers on devices, the rest in memory."


def would_put(layers: int, placement: tuple[LayersOn, ...], names: Mapping[str, str]) -> str:
    """`28 of 37 layers on the RTX 4070, 9 in memory`."""
    rest = layers - sum(one.layers for one in placement)
    parts = [f"{one.layers} of {layers} layers on {_short(one.device, names)}" for one in placement]
    return ", ".join([*parts, *([f"{rest} in memory"] if rest else [])])


def _short(device: str, names: Mapping[str, str]) -> str:
    return _MAKERS.sub("", names.get(device, device))
