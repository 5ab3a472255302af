"""Models that lie in memory because devices were full are loaded again there once they have room."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cards import DIVIDES, card, divided
from greenroom.actors.scheduler.effects import LoadAgain
from greenroom.actors.scheduler.events import EvictionDecided
from greenroom.actors.scheduler.ledger import Device, Memory
from greenroom.actors.scheduler.messages import Configure
from greenroom.actors.scheduler.moving import IDLE, PAUSE, STEADY
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.values import EngineSpec
from scheduler_stage import FACTS, GIB, LLAMA, Stage, installation, installed

SMALL, LARGE = divided("small", 9), divided("large", 39)


def stage(*devices: Device, models: Any = (SMALL, LARGE), facts: Any = DIVIDES, **limits: Any) -> Stage:
    memory = Memory(budget=8 * GIB, available=8 * GIB, devices=devices)
    made = Stage(facts=[facts, *FACTS[1:]], memory=memory, limits=Limits(**limits)).begin(*models)
    one = installation("llama.cpp")
    return made.hear_installer(
        msgspec.structs.replace(installed("llama.cpp"), current=one, installations=(one,))
    )


def room(at: Stage, *devices: Device) -> None:
    at.memory = msgspec.structs.replace(at.memory, devices=devices)


def moves(at: Stage) -> list[EvictionDecided]:
    return [one for one in at.stored(EvictionDecided) if one.reason == "moved"]


def wait(at: Stage, seconds: float) -> None:
    """As the kernel does: every few seconds."""
    for _ in range(int(seconds // 5)):
        at.pass_time(5.0)


def crowded(**limits: Any) -> tuple[Stage, EngineSpec]:
    """A model that the processor computes since the card was full."""
    at = stage(card(0, 2200, available=50), **limits)
    return at, at.loaded("small")


def test_an_idle_model_is_loaded_again_when_its_device_has_had_room_for_a_while() -> None:
    at, spec = crowded()
    assert spec.on_devices == 0
    room(at, card(0, 2200, available=2100))
    wait(at, STEADY)
    assert moves(at) == []
    wait(at, IDLE + 5)
    (moved,) = moves(at)
    assert (moved.engine_id, moved.on_devices, moved.layers) == (spec.engine_id, 10, 10)
    assert moved.device == "GPU-0"
    assert moved.free >= moved.needed > 0
    (again,) = [one for one in at.performed if isinstance(one, LoadAgain)]
    assert (again.model_id, again.backend, again.mode) == (spec.model_id, "llama.cpp", "completion")
    at.engine_is(spec, "gone")
    assert at.loaded("small").on_devices == 10


def test_it_is_loaded_again_in_vain_only_once_in_a_while() -> None:
    at, spec = crowded()
    for _ in range(3):
        room(at, card(0, 2200, available=2100))
        wait(at, STEADY + IDLE + 5)
        # Another program is faster.
        room(at, card(0, 2200, available=50))
        at.engine_is(spec, "gone")
        spec = at.loaded("small")
        assert spec.on_devices == 0
    assert len(moves(at)) == 1
    wait(at, PAUSE)
    spec = at.engine_is(spec, "gone").loaded("small", "later")
    room(at, card(0, 2200, available=2100))
    wait(at, STEADY + IDLE + 5)
    assert len(moves(at)) == 2


def test_one_in_use_is_never_ended_for_a_better_place() -> None:
    at, spec = crowded()
    at.serve("inside", "small")
    room(at, card(0, 2200, available=2100))
    wait(at, 120)
    assert moves(at) == []
    at.leave("inside")
    wait(at, STEADY + IDLE)
    assert [one.engine_id for one in moves(at)] == [spec.engine_id]


def test_room_that_comes_and_goes_is_not_used() -> None:
    at, _ = crowded()
    for _ in range(4):
        room(at, card(0, 2200, available=2100))
        wait(at, STEADY - 10)
        room(at, card(0, 2200, available=50))
        wait(at, 10)
    assert moves(at) == []


def test_a_few_layers_more_are_not_worth_a_load() -> None:
    at = stage(card(0, 4500, available=2200), keep_alive=-1.0)
    spec = at.loaded("large")
    assert 0 < spec.on_devices < 40
    held = spec.device_memory // 2**20
    room(at, card(0, 4500, available=2200 - held + 500))
    wait(at, 60)
    assert moves(at) == []
    room(at, card(0, 4500, available=2200 - held + 1500))
    wait(at, 60)
    (moved,) = moves(at)
    assert moved.on_devices >= spec.on_devices + 10


def test_a_model_that_nothing_uses_any_more_is_left_to_its_keep_alive() -> None:
    at, _ = crowded(keep_alive=120.0)
    wait(at, 60)
    room(at, card(0, 2200, available=2100))
    wait(at, 55)
    assert at.stored(EvictionDecided) == []
    wait(at, 10)
    assert [one.reason for one in at.stored(EvictionDecided)] == ["idle"]


def test_a_pinned_model_is_moved_too_and_stays_pinned() -> None:
    at = stage(card(0, 2200, available=50))
    spec = at.loaded("small", keep_alive=-1.0)
    wait(at, 600)
    room(at, card(0, 2200, available=2100))
    wait(at, STEADY + 5)
    assert [one.engine_id for one in moves(at)] == [spec.engine_id]
    (again,) = [one for one in at.performed if isinstance(one, LoadAgain)]
    assert again.keep_alive == -1.0


def test_layers_that_the_user_keeps_in_memory_stay_there() -> None:
    at = stage(card(0, 2200, available=2100))
    at.when(Configure(model_id=SMALL.id, model_ref="small", flags=("-ngl", "0"))).rest()
    spec = at.loaded("small")
    assert spec.on_devices == 0
    wait(at, 120)
    assert moves(at) == []


def test_a_move_waits_while_requests_wait() -> None:
    at, _ = crowded()
    room(at, card(0, 2200, available=2100))
    at.serve("first", "large", keep_alive=60.0)  # its engine loads
    wait(at, 60)
    assert moves(at) == []


@pytest.mark.parametrize("ends", ["restart", "no restart"])
def test_a_model_that_was_being_moved_counts_as_interrupted(ends: str) -> None:
    at, spec = crowded()
    room(at, card(0, 2200, available=2100))
    wait(at, STEADY + IDLE + 5)
    assert len(moves(at)) == 1
    if ends == "restart":
        assert [one.spec.engine_id for one in at.state.interrupted.values()] == [spec.engine_id]
    else:
        at.engine_is(spec, "gone").loaded("small")
        assert not at.state.interrupted


def test_an_engine_that_is_on_a_device_or_not_for_one_is_never_moved() -> None:
    at = stage(facts=LLAMA)
    at.loaded("small")
    room(at, card(0, 2200, available=2100))
    wait(at, 120)
    assert moves(at) == []
