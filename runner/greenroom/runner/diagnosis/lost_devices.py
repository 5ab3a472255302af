"""Whether an engine ended because its graphics device went away, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from greenroom.actors.daemon_log import DevicesChanged
from greenroom.actors.graphics import GraphicsDevice
from greenroom.runner.diagnosis.engine_history import EngineHistory
from greenroom.runner.diagnosis.explanation import full_stop
from greenroom.runner.diagnosis.history import Happening, of_type
from greenroom.runner.diagnosis.times import clock

_BEFORE = 60.0
"""Seconds by which the loss may have been noticed before the engine ended."""
_AFTER = 180.0
"""The same afterwards: drivers are asked every two seconds, or every minute after they have failed."""
_CODES = frozenset({"device_lost", "device_gone"})
"""Failures of engines that say so themselves."""


class Loss(NamedTuple):
    device: str
    """Its id; empty if only the engine has said so."""
    sentence: str
    happening: Happening | None


def lost(engine: EngineHistory, daemons: Iterable[Happening], now: float) -> Loss | None:
    """What the daemon noticed of an engine's devices when it failed; else what the engine said; else None."""
    failed, spec = engine.failed, engine.spec
    if failed is None or spec is None:
        return None
    used = [one.device for one in spec.placement] or [spec.device] * bool(spec.device)
    for happening, change in of_type(daemons, DevicesChanged):
        if not -_BEFORE <= happening.at - engine.failed_at <= _AFTER:
            continue
        after = {one.id: one for one in change.after}
        for before in change.before:
            if before.id in used and before.problem is None and (how := _how(before, after.get(before.id))):
                sentence = f"its graphics device {before.name} was lost at {clock(happening.at, now)}: {how}"
                return Loss(before.id, full_stop(sentence), happening)
    if failed.failure.code not in _CODES:
        return None
    sentence = (
        "its graphics device was lost, which happens when the computer sleeps, the driver is updated, or the "
        "device is unplugged or falls off the bus."
    )
    return Loss("", sentence, None)


def _how(before: GraphicsDevice, after: GraphicsDevice | None) -> str:
    if after is None:
        return "it is gone (unplugged, removed from this container, or its driver was unloaded)"
    if after.problem is not None:
        return after.problem.sentence()
    if after.driver != before.driver:
        return f"its driver was updated from {before.driver} to {after.driver}"
    return ""
