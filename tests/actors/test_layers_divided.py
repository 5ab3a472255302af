"""How a model is divided: what fits goes to devices, and no pool is asked for more than it has."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.actors.scheduler.layers import (
    Demand,
    Division,
    Site,
    context_that_fits,
    most_of,
    parts_of,
    wholes,
)
from greenroom.actors.scheduler.ledger import Capacity, reservation_for
from greenroom.actors.values import LayersOn, Model, ModelLayers
from scheduler_stage import LLAMA, model

MIB = 2**20
FACTS = msgspec.structs.replace(LLAMA, divides=True, overhead=100 * MIB, device_overhead=300 * MIB)
EVEN = ModelLayers(
    weights=(100 * MIB,) * 9,
    cache=(1024,) * 9,
    input=50 * MIB,
    output=200 * MIB,
    largest=20 * MIB,
    activations=64 * 1024,
    logits=256 * 1024,
)
TEN = model("ten", 1150 * MIB, kv_bytes_per_token=9 * 1024, context_length=8192, layers=EVEN)
"""Nine layers and an output."""


def demand(of: Model = TEN, context: int = 4096, slots: int = 0) -> Demand:
    return Demand(of, context, Capacity(slots=slots), FACTS)


def site(room: int, number: int = 0, learned: int = 0) -> Site:
    return Site(device=f"GPU-{number}", room=room * MIB, learned=learned)


def counts(division: Division) -> list[tuple[str, int]]:
    return [(one.device, one.layers) for one in division.placement]


def test_a_device_with_room_for_all_layers_gets_all() -> None:
    division = most_of(demand(), [site(2000)])
    assert (counts(division), division.layers, division.is_whole) == ([("GPU-0", 10)], 10, True)
    (there,) = division.devices
    assert there.weights == 9 * 100 * MIB + 200 * MIB
    assert there.cache == 4096 * 9 * 1024
    assert there.compute == 300 * MIB + 512 * (64 * 1024 + 2 * 4096) + 256 * 1024
    assert (division.memory.weights, division.memory.cache) == (50 * MIB, 0)
    assert division.memory.compute == 100 * MIB


def test_one_device_is_preferred_to_several_and_several_to_a_part_in_memory() -> None:
    assert counts(most_of(demand(), [site(1000, 0), site(2000, 1), site(1000, 2)])) == [("GPU-1", 10)]
    both = most_of(demand(), [site(1000, 0), site(1200, 1)])
    assert (both.is_whole, {name for name, _ in counts(both)}) == (True, {"GPU-0", "GPU-1"})
    part = most_of(demand(), [site(900, 0), site(500, 1)])
    assert not part.is_whole
    assert 0 < part.on_devices < 10


def test_as_few_devices_as_possible_take_a_model_that_none_can_take_alone() -> None:
    found = most_of(demand(), [site(1100, 0), site(1100, 1), site(1100, 2)])
    assert (found.is_whole, len(found.placement)) == (True, 2)


def test_the_output_goes_to_the_device_with_the_most_room_and_the_rest_is_in_memory() -> None:
    part = most_of(demand(), [site(900)])
    (there,) = part.devices
    in_memory = 10 - part.on_devices
    assert there.weights == (part.on_devices - 1) * 100 * MIB + 200 * MIB
    assert part.memory.weights == 50 * MIB + in_memory * 100 * MIB
    assert there.cache + part.memory.cache == 4096 * 9 * 1024
    # Long prompts are read on the device with copies of what lies in memory.
    assert there.compute == 300 * MIB + 512 * (64 * 1024 + 2 * 4096) + 256 * 1024 + 2 * 20 * MIB


def test_without_room_the_processor_has_all_of_it() -> None:
    none = most_of(demand(), [site(300)])
    assert (none.on_devices, none.placement, none.devices) == (0, (), ())
    assert none.memory == reservation_for(TEN, 4096, FACTS.overhead, Capacity())
    assert most_of(demand(), []) == none


def test_no_more_layers_are_placed_than_were_asked_for() -> None:
    assert most_of(demand(), [site(2000)], 4).on_devices == 4
    assert most_of(demand(), [site(2000)], 0).on_devices == 0
    assert most_of(demand(), [site(2000)], 99).on_devices == 10


def test_what_was_learned_about_a_device_leaves_less_room_or_more() -> None:
    plain = most_of(demand(), [site(900)]).on_devices
    assert most_of(demand(), [site(900, learned=200 * MIB)]).on_devices == plain - 2
    assert most_of(demand(), [site(900, learned=-200 * MIB)]).on_devices == plain + 2


def test_a_projector_lies_with_the_first_layers_on_a_device() -> None:
    seeing = msgspec.structs.replace(TEN, projector_size=64 * MIB)
    both = most_of(demand(seeing), [site(1000, 0), site(1200, 1)])
    assert [one.projector for one in both.devices] == [64 * MIB, 0]
    assert both.memory.projector == 0


def test_layers_of_a_model_whose_header_is_unknown_count_as_equal() -> None:
    old = model("old", 1700 * MIB, kv_bytes_per_token=160)
    parts = parts_of(old)
    assert (parts.count, set(parts.weights), parts.output) == (17, {100 * MIB}, 100 * MIB)
    assert 0 < most_of(demand(old), [site(1000)]).on_devices < 17


def test_a_smaller_context_that_lets_all_layers_fit_is_found() -> None:
    hungry = msgspec.structs.replace(TEN, layers=msgspec.structs.replace(EVEN, cache=(32 * 1024,) * 9))
    sites = [site(2200)]
    assert not most_of(demand(hungry, 16_384), sites).is_whole
    fits = context_that_fits(hungry, Capacity(), FACTS, sites, 16_384)
    assert fits == 2048
    assert most_of(demand(hungry, fits), sites).is_whole
    assert context_that_fits(hungry, Capacity(), FACTS, [site(400)], 16_384) == 0


MODELS = st.builds(
    lambda weights, cache, more: model(
        "any",
        (sum(weights) + more[0] + more[1]) * MIB,
        kv_bytes_per_token=cache * len(weights),
        projector_size=0,
        layers=ModelLayers(
            weights=tuple(size * MIB for size in weights),
            cache=(cache,) * len(weights),
            input=more[0] * MIB,
            output=more[1] * MIB,
            largest=more[2] * MIB,
            activations=more[3],
            logits=more[4],
        ),
    ),
    st.lists(st.integers(0, 300), min_size=1, max_size=40),
    st.integers(0, 8192),
    st.tuples(*[st.integers(0, 500)] * 3, *[st.integers(0, 2**20)] * 2),
)
ROOMS = st.lists(st.integers(0, 6000), max_size=4)


@given(MODELS, ROOMS, st.integers(0, 5), st.integers(0, 20_000), st.integers(-200, 200))
def test_no_pool_is_asked_for_more_than_it_has_and_every_layer_lies_somewhere(
    of: Model, rooms: list[int], slots: int, context: int, learned: int
) -> None:
    sites = [site(room, number, learned * MIB) for number, room in enumerate(rooms)]
    wanted = demand(of, context, slots=slots)
    division = most_of(wanted, sites)
    room = {one.device: one.room for one in sites}
    assert all(one.total <= room[one.device] for one in division.devices)
    assert division.layers == len(of.layers.weights) + 1 if of.layers else 0
    assert [one.device for one in division.devices] == [one.device for one in division.placement]
    assert all(one.layers > 0 for one in division.placement)
    parts = parts_of(of)
    held = sum(one.weights for one in division.devices) + division.memory.weights
    if division.placement:
        assert held == sum(parts.weights) + parts.input + parts.output
    else:
        assert held == of.size
    caches = [one.cache for one in (*division.devices, division.memory)]
    assert sum(caches) == reservation_for(of, context, 0, Capacity()).cache
    for whole in wholes(wanted, sites):
        assert whole.is_whole


@given(MODELS, ROOMS, st.integers(0, 2000), st.integers(1, 10_000))
def test_more_room_or_less_context_never_means_fewer_layers(
    of: Model, rooms: list[int], more: int, context: int
) -> None:
    sites = [site(room, number) for number, room in enumerate(rooms)]
    wider = [site(room + more, number) for number, room in enumerate(rooms)]
    now = most_of(demand(of, context), sites).on_devices
    assert most_of(demand(of, context), wider).on_devices >= now
    assert most_of(demand(of, 2 * context), sites).on_devices <= now


@pytest.mark.parametrize("layers", [3, 10])
def test_what_a_placement_takes_can_be_told_for_any_placement(layers: int) -> None:
    placement = [LayersOn(device="GPU-0", layers=layers)]
    division = demand(slots=4).divided(placement)
    assert division.on_devices == layers
    assert division.devices[0].slots == 4
