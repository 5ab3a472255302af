"""How much memory an engine may take, and when it has taken too much: pure."""

from __future__ import annotations

import pytest

from greenroom.actors.scheduler.state import OVER_MEMORY
from greenroom.actors.values import EngineSpec, Reservation
from greenroom.runner.engines.memory_bound import (
    EXTRA,
    LONGEST,
    SHORTEST,
    MemoryBound,
    MemoryLeft,
    hard_limit,
    next_look,
    over_memory,
    overstepping,
)

GIB = 2**30
PLENTY = MemoryLeft(available=64 * GIB, headroom=GIB // 2)
NOTHING = MemoryLeft(available=GIB // 8, headroom=GIB // 2)


def spec(weights: int = 4 * GIB, cache: int = GIB, device_weights: int = 0) -> EngineSpec:
    reservation = Reservation(weights=weights, cache=cache, compute=GIB // 4)
    on_device = (Reservation(device="gpu-1", weights=device_weights),) if device_weights else ()
    return EngineSpec(
        engine_id="e",
        backend="llama.cpp",
        installation_id="i",
        model_id="m",
        model_ref="smollm2",
        memory=reservation.total,
        reservations=(*on_device, reservation),
    )


def ready(held: int, factor: float = 1.5, **sizes: int) -> MemoryBound:
    bound = MemoryBound(spec(**sizes), factor)
    bound.note_ready(held)
    return bound


def test_an_engine_that_has_mapped_its_weights_may_take_the_rest_of_its_reservation() -> None:
    bound = ready(held=GIB)
    assert bound.allowed == GIB + GIB + GIB // 4
    assert bound.most == int(bound.allowed * 1.5) + EXTRA


def test_an_engine_that_has_read_its_weights_may_take_all_of_its_reservation() -> None:
    assert ready(held=5 * GIB).allowed == spec().memory


def test_what_an_engine_held_when_it_was_ready_is_never_too_much() -> None:
    # What is not known of is learned by the ledger; a process that does not grow is no danger.
    bound = ready(held=20 * GIB)
    assert bound.allowed == 20 * GIB
    assert overstepping({"e": (20 * GIB, bound)}, NOTHING) == ""


def test_only_the_first_look_at_a_ready_engine_counts() -> None:
    bound = ready(held=GIB)
    bound.note_ready(30 * GIB)
    assert bound.allowed < 4 * GIB


def test_an_engine_that_loads_may_hold_its_weights_twice_and_those_for_devices_too() -> None:
    bound = MemoryBound(spec(device_weights=10 * GIB))
    assert bound.allowed == spec().memory + 4 * GIB + 2 * 10 * GIB


def test_nothing_is_known_of_an_engine_without_a_reservation_until_it_is_ready() -> None:
    bound = MemoryBound(
        EngineSpec(engine_id="e", backend="b", installation_id="i", model_id="m", model_ref="m")
    )
    assert not bound.is_known
    bound.note_ready(GIB)
    assert bound.is_known
    assert bound.most == GIB + GIB // 2 + EXTRA


def test_an_engine_beyond_its_bound_must_end_however_much_memory_there_is() -> None:
    bound = ready(held=GIB)
    assert overstepping({"e": (bound.most, bound)}, PLENTY) == ""
    assert overstepping({"e": (bound.most + 1, bound)}, PLENTY) == "e"


def test_when_memory_is_short_the_engine_that_exceeds_its_reservation_most_must_end() -> None:
    small, large = ready(held=GIB), ready(held=2 * GIB)
    held = {"small": (small.noticeable + 2, small), "large": (large.noticeable + 1, large)}
    assert overstepping(held, PLENTY) == ""
    assert overstepping(held, NOTHING) == "small"


def test_when_memory_is_short_an_engine_within_its_reservation_is_left_alone() -> None:
    bound = ready(held=GIB)
    assert overstepping({"e": (bound.allowed, bound)}, NOTHING) == ""
    assert overstepping({"e": (bound.noticeable, bound)}, NOTHING) == ""


@pytest.mark.parametrize(
    ("available", "headroom", "is_short"), [(300, 500, False), (249, 500, True), (100, 0, True)]
)
def test_memory_is_short_when_half_of_the_headroom_is_used_up(
    available: int, headroom: int, is_short: bool
) -> None:
    assert (MemoryLeft(available=available * 10**6, headroom=headroom * 10**6).left <= 0) == is_short


def test_an_engine_is_looked_at_more_often_the_nearer_it_is_to_a_limit() -> None:
    bound = ready(held=GIB, weights=40 * GIB, cache=20 * GIB)
    sizes = [GIB, 18 * GIB, 22 * GIB, bound.noticeable + 1, bound.most - 1]
    pauses = [next_look({"e": (size, bound)}, PLENTY) for size in sizes]
    assert pauses[0] == LONGEST
    assert pauses[1] == LONGEST
    assert SHORTEST < pauses[2] < LONGEST
    assert pauses[4] == SHORTEST
    # Half of the way at most is grown meanwhile, at five gigabytes a second.
    assert pauses[3] * 5e9 < bound.most - bound.noticeable


def test_an_engine_with_too_much_is_looked_at_more_often_when_memory_becomes_short() -> None:
    bound = ready(held=GIB, weights=40 * GIB, cache=20 * GIB)
    held = {"e": (bound.noticeable + 1, bound)}
    room = MemoryLeft(available=GIB, headroom=GIB // 2)
    assert next_look(held, room) < next_look(held, PLENTY)


def test_the_reason_has_the_numbers_and_what_to_change() -> None:
    bound = ready(held=GIB)
    failure = over_memory(spec(), 9 * GIB, bound, PLENTY)
    assert (failure.code, failure.blame) == (OVER_MEMORY, "engine")
    assert failure.message == (
        "it held 9.66 GB of memory, mapped files not counted, and its limit was 4.70 GB (5.64 GB was "
        "reserved for it, weights included)"
    )
    assert "engine_memory_limit" in failure.advice
    short = over_memory(spec(), bound.noticeable + 1, bound, NOTHING)
    assert "the machine had only 134 MB left" in short.message


def test_the_system_is_given_a_limit_that_no_engine_reaches_before_ours() -> None:
    assert hard_limit(spec(), 1.5) > MemoryBound(spec(), 1.5).most
