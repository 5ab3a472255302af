"""What memory engines hold: what is reserved for them, or what was measured.

The ledger adds it up; see `ledger`.
"""

from __future__ import annotations

from greenroom.actors.scheduler.ledger import PROVEN_BY, Capacity, reckoned, reservation_for
from greenroom.actors.scheduler.state import SchedulerVolatile
from greenroom.actors.values import EngineSpec, Measured


def devices_of(spec: EngineSpec) -> tuple[str, ...]:
    """Ids of the devices whose memory an engine uses."""
    if spec.placement:
        return tuple(one.device for one in spec.reservations if one.device)
    return (spec.device,) if spec.device else ()


def share(spec: EngineSpec, device: str = "") -> int:
    """Bytes reserved for an engine there."""
    if not device:
        return spec.memory
    if spec.placement:
        return sum(one.total for one in spec.reservations if one.device == device)
    return spec.device_memory if spec.device == device else 0


def _peak(spec: EngineSpec, measured: Measured, device: str) -> int:
    """The most that an engine was measured to hold there."""
    if device:
        # Drivers tell what it holds on all devices together.
        reserved = sum(share(spec, one) for one in devices_of(spec))
        return measured.device_peak * share(spec, device) // reserved if reserved else 0
    # While it loads, it has all of the file in memory that it copies to devices.
    return measured.now if spec.placement and devices_of(spec) else measured.peak


def holding(spec: EngineSpec, volatile: SchedulerVolatile, device: str = "") -> int:
    """Bytes an engine or a load in flight counts for there: reserved, or measured where that is possible."""
    reservation, measured = share(spec, device), volatile.measured.get(spec.engine_id)
    if not reservation or measured is None or (device and measured.device is None):
        return reservation
    reading = volatile.gates.get(spec.engine_id)
    return reckoned(
        reservation,
        least(spec, volatile, device),
        _peak(spec, measured, device),
        reading.served if reading is not None else 0,
    )


def least(spec: EngineSpec, volatile: SchedulerVolatile, device: str = "") -> int:
    """Weights and cache, in bytes; the whole reservation while the model is not known."""
    if spec.device and not device and not spec.placement:
        return 0  # they are in the device
    for reservation in spec.reservations:
        if reservation.device == device:
            return reservation.claimable
    model = (volatile.models or {}).get(spec.model_id)
    if model is None:
        return share(spec, device)
    return reservation_for(model, spec.context_size, 0, Capacity(slots=spec.slots, batch=spec.batch)).total


def footprint(spec: EngineSpec, volatile: SchedulerVolatile, device: str = "") -> int:
    """What to reserve for the next engine of this kind, in bytes; 0 when this one was not measured enough."""
    measured, reading = volatile.measured.get(spec.engine_id), volatile.gates.get(spec.engine_id)
    if measured is None or (device and measured.device is None):
        return 0
    proven = reading is not None and reading.served >= PROVEN_BY
    peak = _peak(spec, measured, device)
    return holding(spec, volatile, device) if proven or peak > share(spec, device) else 0


def device_footprint(spec: EngineSpec, volatile: SchedulerVolatile) -> int:
    """The same of all its devices together, unless it has not loaded what was planned."""
    engine = volatile.engine(spec.engine_id)
    if engine is not None and engine.has_missed_layers:
        return 0
    return sum(footprint(spec, volatile, one) for one in devices_of(spec))
