"""The ledger: what is reserved, what is left, and who has to go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from greenroom.actors.scheduler.eviction import Holding, fewest_victims
from greenroom.actors.scheduler.ledger import (
    DEFAULT_CONTEXT,
    Account,
    Capacity,
    Memory,
    reservation_for,
)
from scheduler_stage import model

GIB = 2**30


def account(budget: int, available: int, reserved: int = 0, unclaimed: int = 0) -> Account:
    memory = Memory(budget=budget, available=available)
    return Account(memory=memory, reserved=reserved, unclaimed=unclaimed)


def holding(name: str, memory: int, idle_since: float) -> Holding:
    return Holding(engine_id=name, memory=memory, idle_since=idle_since)


def victims(needed: int, *idle: Holding) -> list[str]:
    return [one.engine_id for one in fewest_victims(needed, idle)]


def test_what_is_free_is_what_is_not_reserved() -> None:
    assert account(10, 100, reserved=4).free == 6


def test_what_is_free_is_never_more_than_what_is_really_there() -> None:
    assert account(10, 3).free == 3


def test_loads_in_flight_have_not_yet_taken_what_is_there() -> None:
    assert account(100, 10, reserved=8, unclaimed=8).free == 2


def test_nothing_is_free_rather_than_less_than_nothing() -> None:
    assert account(10, 100, reserved=12).free == 0


def test_a_model_needs_weights_cache_and_overhead() -> None:
    one = model("m", 1000, kv_bytes_per_token=2, context_length=100)
    assert reservation_for(one, 0, 50, Capacity()).total == 1000 + 100 * 2 + 50
    assert reservation_for(one, 10, 50, Capacity()).total == 1000 + 10 * 2 + 50


def test_a_model_that_was_trained_for_a_huge_context_is_not_reckoned_with_all_of_it() -> None:
    assert (
        reservation_for(model("m", 0, kv_bytes_per_token=1, context_length=10**6), 0, 0, Capacity()).total
        == DEFAULT_CONTEXT
    )
    assert reservation_for(model("m", 0, kv_bytes_per_token=1), 0, 0, Capacity()).total == DEFAULT_CONTEXT


def test_the_least_recently_used_goes_first() -> None:
    assert victims(5, holding("new", 5, 20), holding("old", 5, 10)) == ["old"]


def test_no_more_engines_are_evicted_than_needed() -> None:
    idle = [holding("small", 1, 10), holding("big", 9, 20), holding("later", 9, 30)]
    assert victims(9, *idle) == ["big"]


def test_no_engine_is_evicted_if_that_would_not_make_enough_room() -> None:
    assert victims(10, holding("a", 4, 1), holding("b", 5, 2)) == []


def test_no_engine_is_evicted_if_there_is_enough_room() -> None:
    assert victims(0, holding("a", 4, 1)) == []
    assert victims(-3, holding("a", 4, 1)) == []


@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(1, 20), st.floats(0, 100)), max_size=8),
)
def test_the_evicted_engines_suffice_and_none_is_superfluous(
    needed: int, engines: list[tuple[int, float]]
) -> None:
    idle = [holding(f"e{number}", memory, since) for number, (memory, since) in enumerate(engines)]
    chosen = fewest_victims(needed, idle)
    freed = sum(one.memory for one in chosen)
    if sum(one.memory for one in idle) < needed:
        assert not chosen
    else:
        assert freed >= needed
        assert all(freed - one.memory < needed for one in chosen)
