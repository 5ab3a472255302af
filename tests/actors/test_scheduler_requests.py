"""A request's way through the scheduler: what it waits for, what it learns meanwhile, how it is refused."""

from __future__ import annotations

from greenroom.actors.engine_runner.messages import StartEngine
from greenroom.actors.kernel.core import Recovered
from greenroom.actors.library.messages import ModelList
from greenroom.actors.scheduler.events import EvictionDecided, LoadAdmitted, LoadRefused
from greenroom.actors.scheduler.messages import Abandon, Drain, ReadLedger, Serve
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.values import Caller
from scheduler_stage import Stage, begun, installed, model, room_for

QWEN, PHI, BERT = model("qwen"), model("phi"), model("bert")


def test_a_request_for_a_cold_model_is_loaded_and_then_granted_a_place() -> None:
    stage = begun(QWEN)
    stage.serve("r1", "qwen")
    (spec,) = stage.loads
    assert stage.told("runner/llama.cpp") == [StartEngine(spec=spec)]
    stage.engine_is(spec, "starting")
    assert "r1" not in stage.outcomes
    stage.engine_is(spec, "ready")
    granted = stage.granted("r1")
    assert (granted.engine_id, granted.endpoint) == (spec.engine_id, f"/run/{spec.engine_id}.sock")
    assert stage.gates.inside(spec.engine_id) == {"r1"}


def test_a_request_for_a_ready_engine_is_granted_without_an_event() -> None:
    stage = begun(QWEN)
    stage.loaded("qwen")
    stage.serve("r2", "qwen").then()
    assert stage.granted("r2").backend == "llama.cpp"


def test_a_request_joins_the_load_that_is_under_way() -> None:
    stage = begun(QWEN)
    for number in range(50):
        stage.serve(f"r{number}", "qwen")
    assert len(stage.stored(LoadAdmitted)) == 1
    spec = stage.spec_of("qwen")
    stage.engine_is(spec, "ready")
    assert stage.gates.inside(spec.engine_id) == {f"r{number}" for number in range(50)}


def test_a_request_that_leaves_in_the_middle_of_a_load_does_not_end_it() -> None:
    stage = begun(QWEN)
    stage.serve("r1", "qwen").serve("r2", "qwen")
    stage.when(Abandon(request_id="r1")).rest()
    assert stage.refused("r1").code == "abandoned"
    stage.engine_is(stage.spec_of("qwen"), "ready")
    stage.granted("r2")
    assert len(stage.stored(LoadAdmitted)) == 1


def test_a_request_that_leaves_before_its_grant_is_seen_gives_its_place_back() -> None:
    stage = begun(QWEN)
    spec = stage.loaded("qwen")
    stage.serve("r2", "qwen")
    stage.when(Abandon(request_id="r2")).rest()
    assert not stage.gates.inside(spec.engine_id)


def test_a_request_that_was_never_made_may_be_abandoned() -> None:
    stage = begun(QWEN)
    stage.when(Abandon(request_id="unknown"))
    stage.then()
    assert stage.reply is None


def test_a_request_with_an_id_that_waits_already_waits_once() -> None:
    stage = begun(QWEN).serve("r1", "qwen").serve("r1", "qwen")
    assert len(stage.volatile.queue) == 1


def test_a_refusal_for_an_absent_model_says_how_to_get_it() -> None:
    stage = begun()
    stage.serve("r1", "nemo").then()
    refusal = stage.refused("r1")
    assert (refusal.kind, refusal.message) == (
        "not_found",
        'model "nemo" is not in the store; run: greenroom pull nemo',
    )


def test_a_request_past_the_bound_of_the_queue_is_asked_to_come_back() -> None:
    stage = begun(QWEN, limits=Limits(queue=2))
    stage.serve("r1", "qwen").serve("r2", "qwen").serve("r3", "qwen")
    refusal = stage.refused("r3")
    assert (refusal.kind, refusal.code, refusal.retry_after) == ("exhausted", "queue_full", 5.0)


def test_a_request_that_waits_too_long_is_refused_while_its_load_goes_on() -> None:
    stage = begun(QWEN, limits=Limits(max_wait=300))
    stage.serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    stage.engine_is(spec, "starting")
    while "r1" not in stage.outcomes:
        stage.wake()
    refusal = stage.refused("r1")
    assert (refusal.kind, refusal.code) == ("unavailable", "not_ready_yet")
    assert "not ready after 300s; it is still loading qwen on llama.cpp" in refusal.message
    assert stage.loads == [spec]


def test_a_request_learns_what_it_is_waiting_for() -> None:
    stage = begun(QWEN).serve("r1", "qwen")
    assert stage.informed["r1"].phase == "loading"
    assert stage.informed["r1"].follows == f"load/{stage.spec_of('qwen').engine_id}"


def test_a_request_learns_its_place_and_when_it_moves_up() -> None:
    stage = begun(QWEN)
    for number in (1, 2, 3):
        stage.serve(f"r{number}", "qwen", caller=Caller(id="a"))
    stage.serve("r4", "qwen", caller=Caller(id="b"))
    places = {one: stage.informed[one].place for one in ("r1", "r2", "r3", "r4")}
    assert places == {"r1": 1, "r4": 2, "r2": 3, "r3": 4}, "fair between callers"
    stage.when(Abandon(request_id="r4")).rest().pass_time(2)
    assert [stage.informed[one].place for one in ("r1", "r2", "r3")] == [1, 2, 3]
    queue = stage.when(ReadLedger()).reply.queue
    assert [(one.request_id, one.place, one.waited, one.left) for one in queue] == [
        *(("r1", 1, 2.0, 298.0), ("r2", 2, 2.0, 298.0), ("r3", 3, 2.0, 298.0)),
    ]
    assert queue[0].message == "loading qwen on llama.cpp"


def test_a_request_before_the_first_lists_waits_and_time_refuses_it() -> None:
    stage = Stage(limits=Limits(max_wait=30))
    stage.serve("r1", "qwen").then()
    assert stage.informed["r1"].phase == "starting"
    stage.wake()
    assert stage.refused("r1").code == "not_ready_yet"


def test_a_silent_runner_keeps_new_loads_waiting_but_not_what_is_ready() -> None:
    stage = begun(QWEN, PHI)
    spec = stage.loaded("qwen")
    stage.when(Drain())  # volatile, lost with the rest
    super(Stage, stage).rebuild().when(Recovered()).rest()
    stage.when(ModelList(models=(QWEN, PHI), version=1)).rest()
    stage.hear_installer()
    stage.engine_is(spec, "ready")
    stage.serve("r1", "qwen").serve("r2", "phi")
    stage.granted("r1")
    assert "r2" not in stage.outcomes
    for name in ("mlx", "vllm", "vllm-metal"):
        stage.hear_runner(name)
    stage.spec_of("phi")


def test_gates_of_engines_whose_runner_is_silent_are_kept() -> None:
    stage = begun(QWEN)
    spec = stage.loaded("qwen")
    stage.serve("r1", "qwen")
    super(Stage, stage).rebuild().when(Recovered()).rest()
    stage.hear_library().hear_installer().hear_runner("mlx")
    assert stage.gates.inside(spec.engine_id) == {"r1"}


def test_a_daemon_that_stops_before_the_first_lists_refuses_at_once() -> None:
    stage = Stage().serve("r1", "qwen")
    stage.when(Drain()).rest()
    assert stage.refused("r1").code == "stopping"
    assert "drained" not in stage.outcomes


def test_ten_thousand_refusals_add_at_most_five_events() -> None:
    stage = begun(model("gemma", format="safetensors-mlx"))
    before = len(stage.history)
    for number in range(10_000):
        stage.serve("r", "gemma")
        assert stage.outcomes.pop("r").kind == "not_ready", number
    assert len(stage.history) - before <= 5


def test_refusals_of_alternating_reasons_are_stored_once_each() -> None:
    stage = begun(model("gemma", format="safetensors"))
    for number in range(20):
        stage.serve(f"a{number}", "gemma")
        stage.serve(f"b{number}", "gemma", backend="vllm-metal")
    assert [one.code for one in stage.stored(LoadRefused)] == [
        "backend_not_installed",
        "unsupported_platform",
    ]


def test_refusals_are_counted_and_recorded_with_the_next_load() -> None:
    stage = begun(model("gemma", format="safetensors-mlx"))
    for number in range(7):
        stage.serve(f"r{number}", "gemma")
    stage.hear_installer(installed("mlx")).serve("r", "gemma")
    (admitted,) = stage.stored(LoadAdmitted)
    assert admitted.refused_before == 7
    assert not stage.state.refusals


def test_a_caller_with_many_models_does_not_starve_another() -> None:
    names = [f"m{number}" for number in range(4)]
    stage = begun(*(model(name) for name in names), memory=room_for(1))
    stage.serve("a0", "m0", caller=Caller(id="a")).serve("a1", "m1", caller=Caller(id="a"))
    stage.serve("a2", "m2", caller=Caller(id="a")).serve("b0", "m3", caller=Caller(id="b"))
    order = []
    for _ in names:
        (spec,) = stage.loads
        order.append(spec.model_ref)
        stage.engine_is(spec, "ready")
        (request,) = stage.gates.inside(spec.engine_id)
        stage.leave(request)
        stage.pass_time(0.1).dies(spec, expected=True)
    assert order == ["m0", "m3", "m1", "m2"]


def test_within_a_caller_the_first_request_comes_first() -> None:
    stage = begun(QWEN, PHI, BERT, memory=room_for(1))
    stage.serve("r1", "qwen").serve("r2", "phi").serve("r3", "bert")
    assert stage.loads[0].model_ref == "qwen"
    assert [one.request_id for one in stage.volatile.queue] == ["r1", "r2", "r3"]


def test_a_full_disk_refuses_what_needs_a_load_and_serves_what_is_ready() -> None:
    stage = begun(QWEN, PHI)
    stage.loaded("qwen")
    stage.disk_full = True
    # In one turn: the first needs an event, the second does not.
    for request, name in (("r1", "phi"), ("r2", "qwen")):
        stage.when(Serve(request_id=request, model_id=f"sha256:{name}", model_ref=name))
    stage.rest().then()
    assert (stage.refused("r1").kind, stage.refused("r1").code) == ("exhausted", "journal_full")
    stage.granted("r2")


def test_a_full_disk_never_makes_room_for_a_load_that_could_not_be_recorded() -> None:
    stage = begun(QWEN, PHI, memory=room_for(1))
    qwen = stage.loaded("qwen")
    stage.disk_full = True
    stage.serve("r1", "phi").then()
    assert stage.refused("r1").kind == "exhausted"
    assert [spec.engine_id for spec in stage.loads] == [qwen.engine_id]
    stage.pass_time(3600).then(EvictionDecided)  # that it is idle is recorded all the same


def test_a_full_disk_still_tells_the_real_reason_of_a_refusal() -> None:
    stage = begun(model("gemma", format="safetensors-mlx"))
    stage.disk_full = True
    stage.serve("r1", "gemma").then()
    assert stage.refused("r1").kind == "not_ready"


def test_a_full_disk_still_opens_the_gate_of_an_engine_that_becomes_ready() -> None:
    stage = begun(QWEN, PHI).serve("r1", "qwen")
    stage.disk_full = True
    stage.serve("r2", "phi").engine_is(stage.spec_of("qwen"), "ready")
    stage.granted("r1")
    assert stage.refused("r2").kind == "exhausted"


def test_a_full_disk_is_over_when_there_is_room_again() -> None:
    stage = begun(QWEN)
    stage.disk_full = True
    stage.serve("r1", "qwen")
    stage.disk_full = False
    stage.serve("r2", "qwen")
    stage.spec_of("qwen")
