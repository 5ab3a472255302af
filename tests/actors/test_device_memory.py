"""The ledger of each graphics device, beside the machine's."""

from __future__ import annotations

from typing import Any

import msgspec

from greenroom.actors.engine_runner.messages import EngineList
from greenroom.actors.scheduler.events import EvictionDecided, LoadAdmitted
from greenroom.actors.scheduler.ledger import Device, Memory
from greenroom.actors.scheduler.messages import ReadLedger, Unload
from greenroom.actors.scheduler.state import footprint_key
from greenroom.actors.values import EngineSpec, Measured
from scheduler_stage import FACTS, GIB, Stage, model

ONE = model("one", 2 * GIB, format="safetensors")
TWO = model("two", 2 * GIB, format="safetensors")
SMALL = model("small", GIB, format="safetensors")
LARGE = model("large", 7 * GIB, format="safetensors")
CPU = model("cpu", 2 * GIB)
BESIDE = GIB // 2
"""What an engine on a device needs of the machine's memory."""


def device(number: int, size: int, available: int | None = None) -> Device:
    return Device(id=f"GPU-{number}", name=f"card {number}", total=size, budget=size, available=available)


def stage(*devices: Device, budget: int = 8 * GIB, **more: Any) -> Stage:
    facts = [
        msgspec.structs.replace(one, device=True, overhead=BESIDE) if one.name == "vllm" else one
        for one in FACTS
    ]
    memory = Memory(budget=budget, available=budget, devices=devices)
    made = Stage(facts=facts, memory=memory, **more)
    return made.begin(ONE, TWO, SMALL, LARGE, CPU, installed_ones=("llama.cpp", "vllm"))


def measured(at: Stage, spec: EngineSpec, on_device: int | None, here: int = BESIDE) -> None:
    size = Measured(now=here, peak=here, device=on_device, device_peak=on_device or 0)
    engines = tuple(at.engines["vllm"].values())
    at.when(EngineList(backend="vllm", engines=engines, version=2, measured={spec.engine_id: size})).rest()


def test_an_engine_goes_to_the_device_with_the_most_room_and_uses_a_little_host_memory() -> None:
    at = stage(device(0, 3 * GIB), device(1, 4 * GIB))
    spec = at.loaded("one")
    assert (spec.device, spec.device_memory, spec.device_total) == ("GPU-1", 2 * GIB + BESIDE, 4 * GIB)
    assert spec.memory == BESIDE
    (admitted,) = at.stored(LoadAdmitted)
    assert (admitted.reserved, admitted.budget) == (BESIDE, 8 * GIB)
    assert (admitted.device_reserved, admitted.device_budget) == (2 * GIB + BESIDE, 4 * GIB)
    assert at.loaded("two").device == "GPU-0"


def test_a_backend_that_does_not_compute_there_takes_nothing_of_a_device() -> None:
    at = stage(device(0, 4 * GIB))
    assert at.loaded("cpu").device == ""
    assert at.loaded("one").device == "GPU-0"


def test_without_a_device_the_machines_memory_is_all_there_is() -> None:
    spec = stage().loaded("one")
    assert (spec.device, spec.device_memory, spec.memory) == ("", 0, 2 * GIB + BESIDE)


def test_memory_that_other_processes_use_on_a_device_is_not_reserved() -> None:
    at = stage(device(0, 4 * GIB, available=GIB), device(1, 3 * GIB, available=3 * GIB))
    assert at.loaded("one").device == "GPU-1"


def test_where_free_memory_cannot_be_measured_only_reservations_decide() -> None:
    at = stage(device(0, 3 * GIB))
    spec = at.loaded("one")
    at.serve("r", "two")
    evicted = at.stored(EvictionDecided)
    assert [(one.engine_id, one.device, one.reason) for one in evicted] == [(spec.engine_id, "GPU-0", "room")]
    assert (evicted[0].memory, evicted[0].needed, evicted[0].free) == (
        2 * GIB + BESIDE,
        2 * GIB + BESIDE,
        BESIDE,
    )


def test_room_is_made_on_the_device_where_the_fewest_must_end() -> None:
    at = stage(device(0, 3 * GIB), device(1, 3 * GIB))
    first = at.loaded("small")
    at.pass_time(1)
    other = at.loaded("one")
    assert {first.device, other.device} == {"GPU-0", "GPU-1"}
    at.pass_time(1).serve("cpu", "cpu")
    at.pass_time(1).serve("r", "two")
    (evicted,) = at.stored(EvictionDecided)
    assert evicted.engine_id in (first.engine_id, other.engine_id)
    # An engine that has nothing there is not ended for it.
    at.spec_of("cpu")


def test_an_engine_in_use_or_pinned_on_a_device_is_never_evicted() -> None:
    at = stage(device(0, 3 * GIB))
    at.loaded("one", keep_alive=-1)
    at.serve("r", "two")
    refusal = at.refused("r")
    assert (refusal.kind, refusal.code) == ("exhausted", "no_room")
    assert "of the memory of card 0; pinned models hold 2.68 GB of the 3.22 GB" in refusal.message


def test_what_fits_no_device_is_refused_at_once_and_the_largest_is_named() -> None:
    at = stage(device(0, 2 * GIB), device(1, 4 * GIB)).serve("r", "large")
    refusal = at.refused("r")
    assert (refusal.kind, refusal.code) == ("exhausted", "does_not_fit")
    assert refusal.message == (
        "large needs 8.05 GB of the memory of card 1; engines may use 4.29 GB in total."
    )
    assert "gpu_headroom" in refusal.advice


def test_a_load_that_waits_for_a_device_does_not_block_the_machines_memory() -> None:
    at = stage(device(0, 3 * GIB))
    spec = at.loaded("one")
    at.serve("busy", "one").serve("r", "two")
    assert at.informed["r"].message == "waiting for memory: it needs 2.68 GB, 537 MB is free on card 0"
    at.loaded("cpu")
    # Room comes, and no other load overtakes the one that has waited for it.
    at.leave("busy").rest()
    assert [one.engine_id for one in at.stored(EvictionDecided)] == [spec.engine_id]
    at.serve("late", "small")
    assert at.informed["late"].message == "waiting for memory, behind two"


def test_a_peak_above_the_reservation_counts_at_once_and_is_kept() -> None:
    at = stage(device(0, 8 * GIB))
    spec = at.loaded("one")
    measured(at, spec, 5 * GIB)
    reading = at.when(ReadLedger()).reply
    (engine,) = reading.engines
    assert (engine.device_reserved, engine.device_measured, engine.reserved) == (5 * GIB, 5 * GIB, BESIDE)
    assert [(one.reserved, one.free) for one in reading.devices] == [(5 * GIB, 3 * GIB)]
    at.when(Unload(all=True)).rest()
    assert at.state.footprints[footprint_key(spec, on_device=True)] == 5 * GIB
    at.engine_is(spec, "gone")
    assert at.loaded("one").device_memory == 5 * GIB


def test_what_is_not_measured_stays_the_estimate() -> None:
    at = stage(device(0, 8 * GIB))
    spec = at.loaded("one")
    measured(at, spec, None)
    (engine,) = at.when(ReadLedger()).reply.engines
    assert (engine.device_reserved, engine.device_measured) == (2 * GIB + BESIDE, None)


def test_memory_of_a_device_is_free_again_once_its_engine_is_seen_to_be_gone() -> None:
    at = stage(device(0, 3 * GIB))
    spec = at.loaded("one")
    at.serve("r", "two")
    assert not at.state.loads
    at.engine_is(spec, "stopping").pass_time(10)
    assert not at.loads
    at.engine_is(spec, "gone")
    assert at.spec_of("two").device == "GPU-0"
