"""Where the scheduler puts the layers of a model: on devices, beside other engines, and in memory."""

from __future__ import annotations

from typing import Any

import msgspec

from cards import DIVIDES, MIB, card, divided
from greenroom.actors.engine_runner.messages import EngineList, StopEngine
from greenroom.actors.scheduler.events import EvictionDecided, LoadAdmitted
from greenroom.actors.scheduler.ledger import Device, Memory
from greenroom.actors.scheduler.messages import Configure, ReadLedger, ReadPlacement, Unload
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.values import (
    EngineSpec,
    Failure,
    LayersOn,
    Loaded,
    Measured,
    ModelLayers,
)
from scheduler_stage import FACTS, GIB, Stage, installation, installed, model

SMALL, LARGE, OTHER = divided("small", 9), divided("large", 39), divided("other", 9)


def stage(*devices: Device, budget: int = 8 * GIB, variant: str = "", **limits: Any) -> Stage:
    facts = [DIVIDES, *FACTS[1:]]
    memory = Memory(budget=budget, available=budget, devices=devices)
    made = Stage(facts=facts, memory=memory, limits=Limits(**limits)).begin(SMALL, LARGE, OTHER)
    one = installation("llama.cpp", variant=variant)
    status = msgspec.structs.replace(installed("llama.cpp"), current=one, installations=(one,))
    return made.hear_installer(status)


def where(spec: EngineSpec) -> dict[str, int]:
    return {one.device: one.layers for one in spec.placement}


def told(at: Stage) -> str:
    placed: str = at.stored(LoadAdmitted)[-1].placed
    return placed


def test_a_model_goes_whole_to_the_device_with_the_most_room() -> None:
    at = stage(card(0, 2000), card(1, 3000))
    spec = at.loaded("small")
    assert (where(spec), spec.layers, spec.device) == ({"GPU-1": 10}, 10, "GPU-1")
    there, here = spec.reservations
    assert (there.device, there.weights, here.weights) == ("GPU-1", 1000 * MIB, MIB)
    assert (spec.device_memory, spec.memory) == (there.total, here.total)
    assert told(at) == "All 10 layers lie on card 1."


def test_a_model_too_large_for_one_device_goes_to_several() -> None:
    at = stage(card(0, 3000), card(1, 2500))
    spec = at.loaded("large")
    assert spec.on_devices == 40
    assert set(where(spec)) == {"GPU-0", "GPU-1"}
    assert told(at).startswith("All 40 layers lie on several devices, since none has room for all (")
    reading = at.when(ReadLedger()).reply
    for device, account in zip(reading.devices, at.memory.devices, strict=True):
        assert 0 < device.reserved <= account.budget


def test_the_rest_of_a_model_lies_in_memory_and_both_are_reserved() -> None:
    at = stage(card(0, 2200, available=2200))
    spec = at.loaded("large")
    assert where(spec) == {"GPU-0": 20}
    there, here = spec.reservations
    assert there.weights == 20 * 100 * MIB
    assert here.weights == 20 * 100 * MIB + MIB
    assert told(at) == (
        "20 of 40 layers lie on card 0, the other 20 in memory: 2.31 GB of 2.31 GB is free on card 0."
    )


def test_memory_that_other_programs_hold_means_fewer_layers_and_is_told() -> None:
    at = stage(card(0, 2200, available=1200))
    assert where(at.loaded("large")) == {"GPU-0": 10}
    assert "1.26 GB of 2.31 GB is free on card 0, where other programs hold 1.05 GB" in told(at)


def test_memory_that_becomes_free_is_used_by_the_next_load() -> None:
    at = stage(card(0, 2200, available=1200))
    spec = at.loaded("large", "r")
    assert where(spec) == {"GPU-0": 10}
    at.leave("r").when(Unload(all=True)).rest()
    at.engine_is(spec, "gone")
    at.memory = msgspec.structs.replace(at.memory, devices=(card(0, 4500, available=4500),))
    assert where(at.loaded("large")) == {"GPU-0": 40}


def test_without_room_on_any_device_the_processor_computes_and_the_reason_is_stored() -> None:
    at = stage(card(0, 2200, available=50))
    spec = at.loaded("small")
    assert (spec.placement, spec.layers, spec.device, spec.device_memory) == ((), 10, "", 0)
    assert told(at) == (
        "No layer lies on a device, so the processor computes: 52.4 MB of 2.31 GB is free on card 0, where "
        "other programs hold 2.25 GB."
    )


def test_an_installation_for_the_processor_uses_no_device() -> None:
    at = stage(card(0, 2200), variant="cpu")
    spec = at.loaded("small")
    assert (spec.placement, spec.layers, spec.memory) == ((), 10, SMALL.size + 100 * MIB)
    assert told(at) == "This installation computes on the processor."
    without = stage(variant="cpu")
    without.loaded("small")
    # Without a device there is nothing to explain.
    assert told(without) == ""


def test_an_installation_uses_only_devices_that_its_runtime_can_reach() -> None:
    devices = (card(0, 3000, runtimes=("vulkan",)), card(1, 2000, runtimes=("cuda", "vulkan")))
    assert where(stage(*devices).loaded("small")) == {"GPU-1": 10}
    assert where(stage(*devices, variant="vulkan").loaded("small")) == {"GPU-0": 10}
    at = stage(devices[0])
    assert not where(at.loaded("small"))
    assert told(at) == "No device was found that cuda can use, so the processor computes."


def test_memory_that_a_device_shares_with_the_machine_counts_once() -> None:
    shared = card(0, 3000, is_shared=True)
    at = stage(shared)
    spec = at.loaded("small")
    assert (where(spec), spec.device_memory, len(spec.reservations)) == ({"GPU-0": 10}, 0, 1)
    assert spec.memory == SMALL.size + 100 * MIB
    assert where(stage(shared, card(1, 2000)).loaded("small")) == {"GPU-1": 10}


def test_idle_engines_end_for_a_model_that_then_fits_whole_and_only_on_that_device() -> None:
    at = stage(card(0, 1300), card(1, 1300))
    first = at.loaded("small")
    at.pass_time(1)
    second = at.loaded("other")
    assert {first.device, second.device} == {"GPU-0", "GPU-1"}
    third = divided("third", 9)
    at.hear_library(third).serve("r", "third")
    (evicted,) = at.stored(EvictionDecided)
    assert (evicted.engine_id, evicted.device) == (first.engine_id, first.device)
    at.engine_is(first, "gone")
    assert where(at.spec_of("third")) == {first.device: 10}


def test_while_engines_on_the_device_are_in_use_a_model_takes_what_is_left() -> None:
    at = stage(card(0, 2000))
    at.serve("busy", "small")
    at.engine_is(at.spec_of("small"), "ready")
    spec = at.loaded("other")
    assert where(spec) == {"GPU-0": 7}
    assert not at.stored(EvictionDecided)


def test_no_engine_ends_for_a_few_layers_more() -> None:
    at = stage(card(0, 4000))
    few = divided("few", 4)
    at.hear_library(few).loaded("few")
    assert where(at.loaded("large")) == {"GPU-0": 32}
    assert not at.stored(EvictionDecided)


def test_a_model_waits_only_if_neither_devices_nor_memory_have_room() -> None:
    at = stage(card(0, 2000), budget=1500 * MIB)
    at.serve("busy", "small")
    at.engine_is(at.spec_of("small"), "ready")
    at.serve("r", "large")
    assert at.refused("r").code == "does_not_fit"
    at.serve("s", "other")
    assert at.spec_of("other").on_devices == 7


def test_a_user_can_limit_the_layers_on_devices() -> None:
    at = stage(card(0, 2000))
    at.when(Configure(model_id="sha256:small", model_ref="small", flags=("-ngl", "4"))).rest()
    assert where(at.loaded("small")) == {"GPU-0": 4}


def test_more_slots_leave_the_layers_where_they_are() -> None:
    facts = msgspec.structs.replace(DIVIDES, slots=4)
    memory = Memory(budget=8 * GIB, available=8 * GIB, devices=(card(0, 2000),))
    at = Stage(facts=[facts, *FACTS[1:]], memory=memory).begin(SMALL)
    spec = at.loaded("small")
    assert (spec.slots, where(spec)) == (4, {"GPU-0": 10})
    assert [one.slots for one in spec.reservations] == [4, 4]


def test_a_model_that_must_lie_on_devices_is_refused_rather_than_served_by_the_processor() -> None:
    at = stage(card(0, 2000), require_device=True)
    assert at.loaded("small").on_devices == 10
    at.serve("r", "large")
    refusal = at.refused("r")
    assert (refusal.code, refusal.kind) == ("does_not_fit", "exhausted")
    assert refusal.message.startswith("large needs 4.")
    assert "of the memory of card 0" in refusal.message
    none = stage(require_device=True).serve("r", "small").refused("r")
    assert none.message == (
        "small may be loaded only on a graphics device (require_device), and llama.cpp has none here."
    )


def test_a_model_can_be_configured_to_lie_on_devices_or_not() -> None:
    at = stage(card(0, 2000))
    configured = Configure(model_id="sha256:large", model_ref="large", require_device=True)
    at.when(configured).rest().serve("r", "large")
    assert at.refused("r").code == "does_not_fit"
    strict = stage(require_device=True)
    strict.when(msgspec.structs.replace(configured, require_device=False)).rest()
    assert strict.loaded("large").on_devices == 0


def test_a_model_that_must_lie_on_devices_lies_there_as_a_whole_whatever_its_flags_ask() -> None:
    for devices in ([card(0, 2000)], [card(0, 2000, is_shared=True)]):
        at = stage(*devices, require_device=True)
        at.when(Configure(model_id="sha256:small", model_ref="small", flags=("-ngl", "4"))).rest()
        assert where(at.loaded("small")) == {"GPU-0": 10}
    at = stage(card(0, 800, is_shared=True), require_device=True).serve("r", "small")
    assert at.refused("r").message.startswith(
        "small needs 1.16 GB of the memory of card 0; engines may use 839 MB"
    )


def test_an_engine_that_is_partly_in_memory_ends_when_its_model_must_lie_on_devices() -> None:
    at = stage(card(0, 2200))
    spec = at.loaded("large")
    at.when(Configure(model_id="sha256:large", model_ref="large", require_device=True)).rest()
    assert [one.engine_id for one in at.stored(EvictionDecided)] == [spec.engine_id]


def test_a_placement_of_an_older_journal_has_no_layers() -> None:
    old = msgspec.json.decode(
        b'{"engine_id":"e","backend":"b","installation_id":"i","model_id":"m","model_ref":"m","device":"GPU-0",'
        b'"device_memory":5}',
        type=EngineSpec,
    )
    assert (old.placement, old.layers, old.on_devices) == ((), 0, 0)
    assert LayersOn(device="GPU-0", layers=1) not in old.placement


def test_an_engine_that_must_lie_on_devices_and_does_not_is_ended_and_its_requests_are_told() -> None:
    at = stage(card(0, 2000), require_device=True).serve("r", "small")
    spec = at.spec_of("small")
    missed = Loaded(layers=0, total=10, reason="no usable GPU found")
    at.engine_is(spec, "ready", loaded=missed)
    refusal = at.refused("r")
    assert (refusal.code, refusal.retry_after) == ("device_unused", 1.0)
    assert refusal.message == (
        "small may be loaded only on a graphics device (require_device), and llama.cpp has loaded 0 of 10 "
        "layers there: no usable GPU found."
    )
    assert not at.state.breakers
    assert [one.engine_id for one in at.sent(StopEngine)] == [spec.engine_id]


def test_an_engine_that_lies_in_memory_although_it_was_placed_on_a_device_serves_all_the_same() -> None:
    at = stage(card(0, 2000)).serve("r", "small")
    spec = at.spec_of("small")
    at.engine_is(spec, "ready", loaded=Loaded(layers=0, total=10))
    assert at.granted("r").engine_id == spec.engine_id
    at.leave("r").when(Unload(all=True)).rest()
    assert at.stored(EvictionDecided)[-1].device_footprint == 0


def test_an_engine_that_got_no_memory_of_its_device_is_loaded_again_with_fewer_layers() -> None:
    at = stage(card(0, 2200)).serve("r", "large")
    lacking = Failure(kind="transient", code="no_device_memory", message="too little", blame="machine")
    counts = []
    while (spec := at.spec_of("large")).on_devices:
        counts.append(spec.on_devices)
        at.dies(spec, failure=lacking)
    assert counts == [20, 15, 10]
    assert "r" not in at.outcomes
    assert not at.state.breakers
    at.engine_is(spec, "ready")
    assert at.granted("r").engine_id == spec.engine_id


def test_what_an_engine_was_measured_to_hold_of_a_device_corrects_the_next_placement() -> None:
    at = stage(card(0, 2200))
    spec = at.loaded("large")
    (there, _) = spec.reservations
    held = there.total + 250 * MIB
    size = Measured(now=spec.memory, peak=9 * GIB, device=held, device_peak=held)
    engines = tuple(at.engines["llama.cpp"].values())
    at.when(
        EngineList(backend="llama.cpp", engines=engines, version=2, measured={spec.engine_id: size})
    ).rest()
    (account,) = at.when(ReadLedger()).reply.engines
    # While it loads, all of its file is in memory for a moment, which counts no longer.
    assert (account.device_reserved, account.reserved) == (held, spec.memory)
    at.when(Unload(all=True)).rest()
    at.engine_is(spec, "gone")
    again = at.loaded("large")
    assert again.on_devices == spec.on_devices - 2
    assert again.reservations[0].learned == 250 * MIB


def test_where_a_model_would_lie_is_known_before_it_is_loaded_and_with_which_context_all_would_fit() -> None:
    parts = ModelLayers(
        weights=(100 * MIB,) * 9, cache=(32 * 1024,) * 9, output=100 * MIB, input=MIB, largest=MIB
    )
    hungry = model("hungry", 1001 * MIB, layers=parts, kv_bytes_per_token=9 * 32 * 1024, context_length=16384)
    at = stage(card(0, 2200))
    at.hear_library(hungry).when(Configure(model_id=hungry.id, model_ref="hungry", context_size=16384)).rest()
    ask = ReadPlacement(model_id=hungry.id, backend="llama.cpp", installation_id=installation("llama.cpp").id)
    told = at.when(ask).reply
    assert (told.layers, told.placement) == (10, (LayersOn(device="GPU-0", layers=4),))
    assert (told.context, told.context_for_all) == (16384, 2048)
    assert told.reason.startswith("4 of 10 layers lie on card 0")
    # Nothing has been loaded for that, and what is loaded then is the same.
    assert not at.loads
    assert where(at.loaded("hungry")) == {"GPU-0": 4}
    small = at.when(msgspec.structs.replace(ask, model_id=SMALL.id)).reply
    assert (small.layers, small.context_for_all) == (10, 0)
