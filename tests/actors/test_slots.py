"""Slots, context and memory: how many requests an engine takes at once, and who is next."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.scheduler.events import EvictionDecided, LoadAdmitted
from greenroom.actors.scheduler.ledger import Capacity, Memory, larger
from greenroom.actors.scheduler.messages import Abandon, CallerFound, Configure, ReadLedger, SlotFreed
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.values import Caller, EngineSpec, ModelLayers
from scheduler_stage import GIB, LLAMA, MLX, Stage, model

MIB = 2**20
SLOTTED = msgspec.structs.replace(LLAMA, slots=4, prompt_cache=True, overhead=100 * MIB)
SHARED = msgspec.structs.replace(LLAMA, slots=32, shares_cache=True)
# 1 GiB of weights, and 128 MiB of cache for the whole context of one slot.
QWEN = model("qwen", GIB, context_length=8192, kv_bytes_per_token=16 * 1024)
PHI = model("phi", GIB, context_length=8192, kv_bytes_per_token=16 * 1024)


def stage(budget: int = 8 * GIB, facts: Any = (SLOTTED, MLX), **limits: Any) -> Stage:
    memory = Memory(budget=budget, available=budget)
    return Stage(facts=facts, memory=memory, limits=Limits(**limits)).begin(QWEN, PHI)


def caller(name: str, share: str = "") -> Caller:
    return Caller(kind="address", id=name, name=name, share=share)


def held(at: Stage, spec: EngineSpec) -> bool:
    return at.gates.readings()[spec.engine_id].held


def test_an_engine_gets_its_backends_slots_each_with_the_whole_context() -> None:
    at = stage()
    spec = at.loaded("qwen")
    (reservation,) = spec.reservations
    assert (spec.slots, reservation.slots, reservation.cache) == (4, 4, 128 * MIB)
    assert (reservation.weights, reservation.compute) == (GIB, 100 * MIB)
    assert spec.prompt_cache == reservation.prompt_cache == 256 * MIB
    assert spec.memory == reservation.total == GIB + 4 * 128 * MIB + 256 * MIB + 100 * MIB


def test_an_input_to_embed_gets_a_batch_as_long_as_the_context_and_the_memory_for_it() -> None:
    parts = ModelLayers(activations=1000, logits=500)
    made_for = {"mean": parts, "last": parts, "unknown": None}
    facts = (msgspec.structs.replace(SLOTTED, one_batch=True), MLX)
    for name, layers in made_for.items():
        pooling: Any = "" if name == "unknown" else name
        one = msgspec.structs.replace(QWEN, layers=layers, pooling=pooling, made_for="embedding")
        at = Stage(facts=facts, memory=Memory(budget=8 * GIB, available=8 * GIB)).begin(one)
        spec = at.loaded("qwen", mode="embedding")
        (reservation,) = spec.reservations
        assert (spec.prompt_cache, spec.slots) == (0, 4)
        # Only the last token's vector can be computed batch by batch.
        assert spec.batch == (0 if name == "last" else 8192)
        assert reservation.batch == (8192 * (1000 + 500 + 2 * 8192) if name == "mean" else 0)
        assert reservation.claimable == GIB + 4 * 128 * MIB + reservation.batch


@pytest.mark.parametrize(
    ("free_after_one_slot", "slots", "prompts"),
    [(4 * GIB, 4, 256), (2 * GIB, 4, 0), (1300 * MIB, 3, 0), (GIB, 3, 0), (600 * MIB, 2, 0), (0, 1, 0)],
)
def test_more_slots_take_a_quarter_of_what_the_first_leaves_free(
    free_after_one_slot: int, slots: int, prompts: int
) -> None:
    at = stage(GIB + 228 * MIB + free_after_one_slot)
    spec = at.loaded("qwen")
    assert (spec.slots, spec.prompt_cache) == (slots, prompts * MIB)


def test_two_models_that_fit_side_by_side_do_so_in_spite_of_their_slots() -> None:
    at = stage(3 * GIB)
    at.loaded("qwen")
    at.loaded("phi")
    assert not at.stored(EvictionDecided)


def test_slots_that_are_configured_are_had_or_nothing_is_loaded() -> None:
    at = stage(2 * GIB)
    at.when(Configure(model_id="sha256:qwen", model_ref="qwen", slots=6, prompt_cache=0)).rest()
    spec = at.loaded("qwen")
    assert (spec.slots, spec.prompt_cache) == (6, 0)
    at.when(Configure(model_id="sha256:qwen", model_ref="qwen", slots=64)).rest()
    at.engine_is(spec, "gone")
    at.serve("r1", "qwen")
    refusal = at.refused("r1")
    assert refusal.kind == "exhausted"
    assert refusal.numbers["needed"] > 9 * GIB


def test_the_configured_slots_apply_to_every_model() -> None:
    at = stage(slots=2, prompt_cache=64 * MIB)
    spec = at.loaded("qwen")
    assert (spec.slots, spec.prompt_cache) == (2, 64 * MIB)


def test_memory_for_a_shared_cache_is_reserved_once() -> None:
    at = stage(facts=(SHARED, MLX))
    spec = at.loaded("qwen")
    assert (spec.slots, spec.reservations[0].slots, spec.memory) == (32, 1, GIB + 128 * MIB)


def test_a_request_without_a_free_slot_is_queued_and_learns_its_place() -> None:
    at = stage(slots=2)
    spec = at.loaded("qwen")
    for number in range(5):
        at.serve(f"r{number}", "qwen")
    assert at.gates.inside(spec.engine_id) == {"r0", "r1"}
    assert "r2" not in at.outcomes
    told = at.informed["r2"]
    assert (told.phase, told.place) == ("queued", 1)
    assert told.message == "queued for a slot of qwen, which has 2"
    assert [slot.number for slot in at.gates.slots(spec.engine_id)] == [0, 1]
    at.leave("r0")
    assert at.granted("r2").engine_id == spec.engine_id
    assert at.gates.inside(spec.engine_id) == {"r1", "r2"}
    assert at.informed["r3"].place == 1


def test_a_new_request_does_not_overtake_queued_ones() -> None:
    at = stage(slots=1)
    spec = at.loaded("qwen")
    at.serve("r1", "qwen").serve("r2", "qwen")
    assert held(at, spec)
    at.gates.leave("r1")
    assert at.gates.enter("sha256:qwen", "completion", "", "late") is None
    at.when(SlotFreed(engine_id=spec.engine_id)).rest()
    assert at.gates.inside(spec.engine_id) == {"r2"}
    at.leave("r2")
    assert not held(at, spec)
    assert at.gates.enter("sha256:qwen", "completion", "", "walks in") is not None


def test_more_requests_than_slots_that_waited_for_a_load_hold_its_gate_from_the_start() -> None:
    at = stage(slots=2)
    for number in range(4):
        at.serve(f"r{number}", "qwen")
    spec = at.spec_of("qwen")
    at.engine_is(spec, "ready")
    assert at.gates.inside(spec.engine_id) == {"r0", "r1"}
    assert held(at, spec)
    freed: list[str] = []
    at.gates.on_freed = freed.append
    at.gates.leave("r0")
    assert freed == [spec.engine_id], "no listener learns of the free slot, and it stays empty"
    assert at.gates.enter("sha256:qwen", "completion", "", "walks in") is None


def test_a_gate_that_a_request_found_full_is_free_again_when_that_one_has_gone() -> None:
    at = stage(slots=1)
    spec = at.loaded("qwen")
    assert at.gates.enter("sha256:qwen", "completion", "", "inside") is not None
    assert at.gates.enter("sha256:qwen", "completion", "", "leaves at once") is None
    assert held(at, spec)
    at.when(Abandon(request_id="leaves at once")).rest()
    assert not held(at, spec)


def test_a_request_for_several_answers_takes_as_many_slots_and_is_not_overtaken() -> None:
    at = stage(slots=4)
    spec = at.loaded("qwen")
    at.serve("r1", "qwen").serve("wide", "qwen", slots=4).serve("r3", "qwen")
    assert "wide" not in at.outcomes
    assert "r3" not in at.outcomes, "it would keep the other from ever finding four slots free"
    at.leave("r1")
    assert [slot.request_id for slot in at.gates.slots(spec.engine_id)] == ["wide"] * 4
    at.leave("wide")
    assert at.gates.inside(spec.engine_id) == {"r3"}


def test_a_request_for_more_answers_than_there_are_slots_gets_all_of_them() -> None:
    at = stage(slots=2)
    spec = at.loaded("qwen")
    at.serve("wide", "qwen", slots=8)
    assert at.granted("wide").engine_id == spec.engine_id


def test_callers_take_turns_and_so_do_the_connections_of_one() -> None:
    at = stage(slots=1)
    at.loaded("qwen")
    at.serve("inside", "qwen", caller=caller("x"))
    for number in (1, 2, 3):
        at.serve(f"a{number}", "qwen", caller=caller("a", share="one"))
    at.serve("a4", "qwen", caller=caller("a", share="two")).serve("b1", "qwen", caller=caller("b"))
    order = ["inside"]
    while len(order) < 6:
        at.leave(order[-1])
        order += [one for one in at.outcomes if one[0] in "ab" and one not in order]
    assert order == ["inside", "a1", "b1", "a4", "a2", "a3"]


def test_one_caller_cannot_fill_the_queue() -> None:
    at = stage(slots=1, queue=8)
    at.loaded("qwen")
    for number in range(20):
        at.serve(f"r{number}", "qwen", caller=caller("greedy"))
    refused = [one for one in at.outcomes.values() if isinstance(one, Refusal)]
    assert len(refused) == 13, "one is inside, six are queued"
    assert refused[0].message.startswith("6 of your requests are already queued")
    at.serve("modest", "qwen", caller=caller("modest"))
    assert "modest" not in at.outcomes


def test_one_caller_cannot_fill_the_queue_from_connections_that_are_not_known_yet() -> None:
    at = stage(slots=1, queue=8)
    at.loaded("qwen")
    greedy = Caller(kind="process", id="0/7", name="greedy (process 7)")
    for number in range(9):
        at.serve(f"r{number}", "qwen", caller=caller("127.0.0.1"))
        at.when(CallerFound(request_id=f"r{number}", caller=greedy)).rest()
    refused = {key for key, one in at.outcomes.items() if isinstance(one, Refusal)}
    assert refused == {"r7", "r8"}, "one is inside, six are queued"
    assert at.refused("r7").code == "queue_full"
    assert at.gates.enter("sha256:qwen", "completion", "", "modest") is None
    at.serve("modest", "qwen", caller=caller("127.0.0.1"))
    assert "modest" not in at.outcomes


def test_a_long_queue_that_moves_refuses_no_request() -> None:
    at = stage(slots=1, max_queued=60)
    at.loaded("qwen")
    for number in range(4):
        at.serve(f"r{number}", "qwen")
    for number in range(3):
        at.pass_time(50)
        at.leave(f"r{number}")
    at.granted("r3")


def test_a_queue_waits_as_long_as_those_before_it_are_being_answered() -> None:
    at = stage(slots=1, max_wait=20, max_queued=60)
    spec = at.loaded("qwen")
    at.serve("r1", "qwen").serve("r2", "qwen")
    for _ in range(5):
        at.pass_time(50)
        at.gates.last_byte(spec.engine_id).at = at.clock.now().monotonic
    assert "r2" not in at.outcomes
    at.pass_time(61)
    assert at.refused("r2").kind == "unavailable"


def test_the_time_in_a_queue_does_not_count_when_its_engine_has_to_be_replaced() -> None:
    at = stage(slots=1, max_wait=20, max_queued=60)
    spec = at.loaded("qwen")
    at.serve("r1", "qwen").serve("r2", "qwen")
    at.pass_time(50)
    at.dies(spec)
    assert "r2" not in at.outcomes, "it had to wait for a slot, and has only begun to wait for an engine"
    at.pass_time(19)
    assert "r2" not in at.outcomes
    at.pass_time(1)
    assert at.refused("r2").code == "not_ready_yet"


def test_a_request_queued_for_a_slot_learns_how_long_it_may_wait() -> None:
    at = stage(slots=1, max_wait=20, max_queued=60)
    at.loaded("qwen")
    at.serve("r1", "qwen").serve("r2", "qwen")
    at.pass_time(25)
    (entry,) = at.when(ReadLedger()).reply.queue
    assert (entry.waited, entry.left) == (25, 35)


def test_measurements_of_few_slots_say_nothing_about_many() -> None:
    at = stage(slots=1)
    spec = at.loaded("qwen")
    at.when(Configure(model_id="sha256:qwen", model_ref="qwen", slots=4)).rest()
    at.engine_is(spec, "gone")
    again = at.loaded("qwen", "again")
    assert again.memory > spec.memory


def test_more_slots_come_before_a_prompt_cache() -> None:
    smallest = Capacity(slots=1, prompt_cache=0)
    found = [(one.slots, one.prompt_cache) for one in larger(smallest, 3, 7)]
    assert found == [(3, 7), (3, 0), (2, 7), (2, 0), (1, 7)]
    fixed = Capacity(slots=2, prompt_cache=5)
    assert larger(fixed, 2, 0) == []
    found = [(one.slots, one.prompt_cache) for one in larger(smallest, 3, 7, alone=True)]
    assert found == [(3, 0), (2, 0), (1, 7)], "it has no use for one with several slots"


def test_the_caller_is_stored_with_the_load_that_it_caused() -> None:
    at = stage()
    at.serve("r1", "qwen", caller=caller("192.0.2.7"))
    (admitted,) = at.stored(LoadAdmitted)
    assert admitted.caller == caller("192.0.2.7")
