"""Memory: what is reserved for loads, and which engines are evicted to make room."""

from __future__ import annotations

from greenroom.actors.engine_runner.messages import StopEngine
from greenroom.actors.scheduler.events import EvictionDecided
from greenroom.actors.scheduler.ledger import Memory
from greenroom.actors.scheduler.messages import Configure, Serve
from greenroom.actors.scheduler.queue import LOOK_FOR_MEMORY
from greenroom.actors.scheduler.turn_context import Limits
from scheduler_stage import GIB, LLAMA, begun, model, room_for

QWEN, PHI, BERT = model("qwen"), model("phi"), model("bert")


def test_what_can_never_fit_is_refused_at_once_with_the_numbers() -> None:
    stage = begun(model("huge", 9 * GIB))
    stage.serve("r1", "huge")
    refusal = stage.refused("r1")
    assert (refusal.kind, refusal.code) == ("exhausted", "does_not_fit")
    assert refusal.message == "huge needs 9.66 GB of memory; engines may use 8.59 GB in total."
    assert refusal.numbers == {"needed": 9.0 * GIB, "budget": 8.0 * GIB, "promised": 0.0}


def test_context_and_overhead_count_as_memory() -> None:
    stage = begun(model("qwen", kv_bytes_per_token=1000, context_length=4096))
    stage.serve("r1", "qwen")
    assert stage.spec_of("qwen").memory == GIB + 4096 * 1000 + LLAMA.overhead


def test_loads_in_flight_reserve_memory() -> None:
    stage = begun(QWEN, PHI, memory=room_for(1))
    stage.serve("r1", "qwen").serve("r2", "phi")
    assert len(stage.loads) == 1
    assert stage.informed["r2"].phase == "waiting_for_memory"


def test_the_least_recently_used_idle_engine_makes_room() -> None:
    stage = begun(QWEN, PHI, BERT, memory=room_for(2))
    stage.loaded("qwen")
    stage.pass_time(1)
    stage.loaded("phi")
    stage.pass_time(1).serve("again", "qwen").leave("again")
    stage.serve("r1", "bert")
    (evicted,) = stage.stored(EvictionDecided)
    assert (evicted.model_ref, evicted.reason, evicted.in_favour_of) == ("phi", "room", "bert")
    assert (evicted.needed, evicted.free) == (GIB, 0)


def test_room_counts_only_once_the_engine_is_gone() -> None:
    stage = begun(QWEN, PHI, memory=room_for(1))
    spec = stage.loaded("qwen")
    stage.serve("r1", "phi")
    assert not stage.loads
    stage.engine_is(spec, "stopping")
    assert not stage.loads
    stage.engine_is(spec, "gone")
    stage.spec_of("phi")


def test_only_as_many_engines_as_needed_are_evicted() -> None:
    stage = begun(QWEN, PHI, BERT, memory=room_for(3))
    for name in ("qwen", "phi", "bert"):
        stage.loaded(name)
        stage.pass_time(1)
    stage.hear_library(model("new"))
    stage.serve("r1", "new").pass_time(1)
    assert [one.model_ref for one in stage.stored(EvictionDecided)] == ["qwen"]


def test_an_engine_in_use_is_never_evicted() -> None:
    stage = begun(QWEN, PHI, memory=room_for(1))
    stage.loaded("qwen")
    stage.serve("busy", "qwen").serve("r1", "phi")
    assert not stage.stored(EvictionDecided)
    stage.leave("busy")
    (evicted,) = stage.stored(EvictionDecided)
    assert evicted.model_ref == "qwen"


def test_an_engine_that_was_granted_a_moment_ago_is_not_evicted() -> None:
    stage = begun(QWEN, PHI, memory=room_for(1))
    spec = stage.loaded("qwen")
    # Both are in the queue when the engine is looked at: its gate does not show the first one yet.
    for request, name in (("r1", "qwen"), ("r2", "phi")):
        stage.when(Serve(request_id=request, model_id=f"sha256:{name}", model_ref=name))
    stage.rest()
    assert stage.granted("r1").engine_id == spec.engine_id
    assert not stage.stored(EvictionDecided)


def test_a_request_that_enters_an_engine_at_the_worst_moment_is_served() -> None:
    stage = begun(QWEN, PHI, memory=room_for(1))
    spec = stage.loaded("qwen")
    stage.when(Serve(request_id="r1", model_id=PHI.id, model_ref="phi"))
    stage.settle()
    assert stage.stored(EvictionDecided)
    # The front door enters without asking an actor.
    assert stage.gates.enter(QWEN.id, "completion", "", "late")
    stage.rest().pass_time(1)
    assert not stage.sent(StopEngine)
    stage.leave("late")
    (stop,) = stage.sent(StopEngine)
    assert stop.engine_id == spec.engine_id


def test_a_pinned_model_is_never_evicted_and_the_refusal_names_what_it_holds() -> None:
    stage = begun(QWEN, PHI, memory=room_for(1))
    stage.when(Configure(model_id=QWEN.id, model_ref="qwen", keep_alive=-1)).rest()
    stage.loaded("qwen")
    stage.serve("r1", "phi")
    refusal = stage.refused("r1")
    assert (refusal.kind, refusal.code) == ("exhausted", "no_room")
    assert "pinned models hold 1.07 GB of the 1.07 GB" in refusal.message
    assert not stage.stored(EvictionDecided)


def test_a_request_waits_while_other_programs_hold_the_memory() -> None:
    stage = begun(QWEN, memory=Memory(budget=8 * GIB, available=0))
    stage.serve("r1", "qwen")
    assert stage.informed["r1"].message == "waiting for memory: it needs 1.07 GB, 0 B is free"
    stage.memory = room_for(8)
    stage.pass_time(5)
    stage.spec_of("qwen")


def test_a_request_is_refused_with_the_numbers_when_other_programs_hold_the_memory_for_long() -> None:
    stage = begun(QWEN, memory=Memory(budget=8 * GIB, available=0), limits=Limits(max_wait=10))
    stage.serve("r1", "qwen").pass_time(10)
    assert "it is still waiting for memory: it needs 1.07 GB" in stage.refused("r1").message


def test_what_other_programs_free_is_noticed_within_half_a_second() -> None:
    stage = begun(QWEN, memory=Memory(budget=8 * GIB, available=0))
    stage.serve("r1", "qwen")
    stage.memory = Memory(budget=8 * GIB, available=8 * GIB)
    stage.pass_time(LOOK_FOR_MEMORY)
    assert len(stage.loads) == 1


def test_no_request_takes_the_room_that_is_made_for_another() -> None:
    stage = begun(QWEN, PHI, model("big", 2 * GIB), memory=room_for(2))
    spec = stage.loaded("qwen")
    stage.serve("r1", "big").serve("r2", "phi")
    assert [one.model_ref for one in stage.stored(EvictionDecided)] == ["qwen"]
    assert stage.informed["r2"].message == "waiting for memory, behind big"
    stage.dies(spec, expected=True)
    stage.spec_of("big")


def test_a_request_that_fits_overtakes_one_that_waits_for_an_engine_in_use() -> None:
    stage = begun(QWEN, PHI, model("big", 2 * GIB), memory=room_for(2))
    stage.loaded("qwen")
    stage.serve("busy", "qwen").serve("r1", "big").serve("r2", "phi")
    stage.spec_of("phi")


def test_in_the_end_no_request_overtakes_one_that_waits_for_an_engine_in_use() -> None:
    limits = Limits(max_wait=100)
    stage = begun(QWEN, PHI, model("big", 2 * GIB), memory=room_for(2), limits=limits)
    stage.loaded("qwen")
    stage.serve("busy", "qwen").serve("r1", "big").pass_time(50).serve("r2", "phi")
    assert stage.informed["r2"].message == "waiting for memory, behind big"
    stage.pass_time(50)
    assert stage.refused("r1").code == "not_ready_yet"
    stage.spec_of("phi")


def test_a_request_that_waits_for_other_programs_memory_is_overtaken() -> None:
    stage = begun(QWEN, model("big", 4 * GIB), memory=Memory(budget=8 * GIB, available=2 * GIB))
    stage.serve("r1", "big").serve("r2", "qwen")
    stage.spec_of("qwen")
