"""How engines end, what a restart of the scheduler finds of them, and when one is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors.engine_runner.messages import ForbidStart, StartEngine, StopEngine
from greenroom.actors.kernel.core import Recovered
from greenroom.actors.scheduler.events import BreakerClosed, LoadAdmitted, LoadFailed
from greenroom.actors.scheduler.messages import Abandon, Unload
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.values import Caller, RequestSnapshot
from scheduler_stage import Stage, begun, model, room_for

QWEN, PHI = model("qwen"), model("phi")


def test_a_load_that_fails_tells_every_waiting_request_why() -> None:
    stage = begun(QWEN).serve("r1", "qwen").serve("r2", "qwen")
    spec = stage.spec_of("qwen")
    stage.dies(spec, summary="It ran out of memory (SIGKILL).")
    for request in ("r1", "r2"):
        refusal = stage.refused(request)
        assert (refusal.kind, refusal.code) == ("internal", "engine_failed")
        assert refusal.message == "It ran out of memory (SIGKILL)."
        assert f"greenroom logs {spec.engine_id}" in refusal.advice
    (failed,) = stage.stored(LoadFailed)
    assert not failed.was_ready
    assert not stage.loads


def test_an_engine_that_dies_while_it_is_ready_is_loaded_again_by_the_next_request() -> None:
    stage = begun(QWEN)
    spec = stage.loaded("qwen")
    stage.dies(spec)
    (failed,) = stage.stored(LoadFailed)
    assert failed.was_ready
    assert not stage.gates.readings()
    stage.serve("r2", "qwen")
    assert stage.spec_of("qwen").engine_id != spec.engine_id


def test_a_request_that_waits_for_an_engine_that_got_lost_gets_another_one() -> None:
    stage = begun(QWEN).serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    stage.engine_is(spec, "starting")
    stage.dies(spec, code=None, lost=True, summary="its keeper is gone")
    assert "r1" not in stage.outcomes
    (failed,) = stage.stored(LoadFailed)
    assert failed.failure.code == "engine_lost"
    stage.engine_is(stage.spec_of("qwen"), "ready")
    stage.granted("r1")


def test_a_request_whose_engines_are_all_lost_as_they_start_is_refused_after_the_third() -> None:
    stage = begun(model("qwen"))
    stage.serve("r1", "qwen")
    for _ in range(3):
        assert "r1" not in stage.outcomes
        (spec,) = stage.loads
        stage.engine_is(spec, "starting")
        stage.dies(spec, code=None, lost=True, summary="its keeper is gone")
    refusal = stage.refused("r1")
    assert (refusal.code, refusal.kind, refusal.retry_after) == ("engine_lost", "unavailable", 1.0)
    assert len(stage.stored(LoadAdmitted)) == 3, "a load that begins at once fills the journal"
    stage.pass_time(1).serve("r2", "qwen")
    (spec,) = stage.loads
    stage.engine_is(spec, "ready")
    stage.granted("r2")
    assert not stage.volatile.setbacks


@pytest.mark.parametrize("how", [{"lost": True}, {"expected": True}])
def test_what_is_not_the_models_fault_does_not_count_against_it(how: dict[str, Any]) -> None:
    stage = begun(QWEN)
    for number in range(5):
        stage.serve(f"r{number}", "qwen")
        stage.dies(stage.spec_of("qwen"), **how)
        stage.when(Abandon(request_id=f"r{number}")).pass_time(10)
    assert not stage.state.breakers


def test_a_start_is_repeated_until_its_runner_lists_it() -> None:
    stage = begun(QWEN).serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    stage.pass_time(2)
    assert stage.sent(StartEngine) == [StartEngine(spec=spec)]
    stage.pass_time(3)
    assert stage.sent(StartEngine) == [StartEngine(spec=spec)] * 2
    stage.engine_is(spec, "starting").pass_time(20)
    assert len(stage.sent(StartEngine)) == 2


def test_a_start_that_is_never_taken_is_given_up_and_its_memory_with_it() -> None:
    stage = begun(QWEN, limits=Limits(max_wait=50)).serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    for _ in range(11):
        stage.pass_time(5).hear_runner()
    assert not stage.sent(ForbidStart)
    stage.pass_time(5)
    assert stage.sent(ForbidStart) == [ForbidStart(backend=spec.backend, engine_id=spec.engine_id)]
    stage.hear_runner()
    (failed,) = stage.stored(LoadFailed)
    assert failed.failure.code == "engine_lost"
    assert not stage.loads
    assert stage.refused("r1").code == "not_ready_yet"


def test_a_start_that_may_still_be_on_its_way_keeps_its_memory() -> None:
    stage = begun(QWEN, PHI, memory=room_for(1), limits=Limits(max_wait=50)).serve("r1", "qwen")
    stage.answering = False
    for _ in range(100):
        stage.pass_time(5).hear_runner()
    assert stage.loads
    assert stage.refused("r1").code == "not_ready_yet"
    # Its runner handles the start after all, and what was sent behind it leaves the engine alone.
    spec = stage.spec_of("qwen")
    stage.answering = True
    stage.engine_is(spec, "ready").serve("r2", "qwen")
    assert stage.loads == [spec]
    stage.granted("r2")
    assert not stage.sent(StopEngine)


def test_an_engine_that_was_listed_once_and_no_longer_is_is_not_started_again() -> None:
    stage = begun(QWEN).serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    stage.engine_is(spec, "ready").leave("r1")
    del stage.engines["llama.cpp"][spec.engine_id]
    stage.hear_runner()
    assert [type(one) for one in stage.told("runner/llama.cpp")] == [ForbidStart]
    assert stage.loads == [spec]
    stage.hear_runner()
    (failed,) = stage.stored(LoadFailed)
    assert failed.failure.code == "engine_lost"
    assert len(stage.sent(StartEngine)) == 1


def test_a_list_sent_before_a_restart_does_not_count() -> None:
    stage = begun(QWEN).serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    super(Stage, stage).rebuild().when(Recovered()).rest()
    stage.hear_library().hear_installer()
    stage.answering = False
    # Sent before the start had reached the runner, heard after the scheduler was rebuilt.
    stage.hear_runner()
    assert stage.loads == [spec]
    stage.answering = True
    stage.engine_is(spec, "starting")
    assert stage.loads == [spec]
    assert not stage.stored(LoadFailed)


def test_owners_that_send_no_list_are_asked_again() -> None:
    stage = Stage().when(Recovered()).rest()
    for owner in ("installer", "library", "runner/llama.cpp", "runner/mlx"):
        assert len(stage.sent(RequestSnapshot, owner)) == 1
    stage.hear_installer().hear_runner("mlx").pass_time(5)
    counts = [len(stage.sent(RequestSnapshot, one)) for one in ("installer", "library", "runner/mlx")]
    assert counts == [1, 2, 1]


def test_an_engine_still_ready_after_a_restart_serves_again_without_a_new_start() -> None:
    stage = begun(QWEN)
    spec = stage.loaded("qwen")
    stage.gates.keep(())  # another daemon has other gates
    stage.rebuild()
    assert not stage.told("runner/llama.cpp")
    stage.serve("r1", "qwen").then()
    assert stage.granted("r1").engine_id == spec.engine_id
    assert len(stage.stored(LoadAdmitted)) == 1


def test_an_engine_that_died_during_a_restart_has_failed_with_its_reason() -> None:
    stage = begun(QWEN)
    spec = stage.loaded("qwen")
    stage.engines["llama.cpp"] = {}
    stage.gates.keep(())
    stage.rebuild().hear_runner()
    (failed,) = stage.stored(LoadFailed)
    assert (failed.engine_id, failed.failure.code) == (spec.engine_id, "engine_lost")
    assert not stage.state.breakers


def test_a_load_still_starting_after_a_restart_is_waited_for() -> None:
    stage = begun(QWEN).serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    stage.engine_is(spec, "starting").rebuild()
    stage.serve("r2", "qwen")
    assert len(stage.loads) == 1
    stage.engine_is(spec, "ready")
    stage.granted("r2")


def test_an_engine_that_should_not_exist_after_a_restart_is_ended() -> None:
    stage = begun(QWEN)
    spec = stage.loaded("qwen")
    stage.when(Unload(all=True)).rest()
    stage.gates.keep(())
    stage.rebuild()
    assert [one.engine_id for one in stage.sent(StopEngine)] == [spec.engine_id]


def test_volatile_state_does_not_grow_with_the_number_of_loads() -> None:
    stage = begun(QWEN)
    for number in range(30):
        spec = stage.loaded("qwen", f"r{number}", keep_alive=5.0, caller=Caller(id=f"c{number}"))
        stage.when(Unload(all=True)).rest()
        stage.dies(spec, expected=True)
        stage.engines["llama.cpp"].clear()
    volatile = stage.pass_time(1).volatile
    assert not any(
        (
            volatile.met,
            volatile.begun,
            volatile.start_sent,
            volatile.leaving,
            volatile.stop_sent,
            volatile.keep_alive,
        )
    )
    assert not volatile.queue


def broken(failures: int) -> Stage:
    stage = begun(QWEN, PHI)
    for number in range(failures):
        stage.serve(f"f{number}", "qwen")
        stage.dies(stage.spec_of("qwen"), summary="It cannot read this model.")
    return stage


def test_the_breaker_opens_after_three_failures_and_says_when_to_come_back() -> None:
    stage = broken(3)
    stage.serve("r1", "qwen")
    refusal = stage.refused("r1")
    assert (refusal.kind, refusal.code, refusal.retry_after) == ("unavailable", "breaker_open", 10.0)
    assert refusal.message.endswith("The last failure: It cannot read this model.")


def test_the_breaker_lets_one_load_through_after_its_time_and_doubles_when_that_fails() -> None:
    stage = broken(3).pass_time(10)
    stage.serve("r1", "qwen")
    stage.dies(stage.spec_of("qwen"))
    stage.serve("r2", "qwen")
    assert stage.refused("r2").retry_after == 20.0


def test_the_breakers_pause_is_bounded() -> None:
    stage = broken(3)
    for number in range(20):
        stage.pass_time(300).serve(f"r{number}", "qwen")
        stage.dies(stage.spec_of("qwen"))
    stage.serve("last", "qwen")
    assert stage.refused("last").retry_after == 300.0


def test_the_breaker_leaves_other_models_alone() -> None:
    stage = broken(3)
    stage.loaded("phi")


def test_the_breaker_opens_for_a_model_that_answers_once_before_each_death() -> None:
    stage = begun(QWEN)
    for number in range(3):
        spec = stage.loaded("qwen")
        stage.serve(f"r{number}", "qwen").leave(f"r{number}").pass_time(7).dies(spec)
    stage.serve("r4", "qwen")
    assert stage.refused("r4").code == "breaker_open"
    # Nor is one good answer after the cool-down an all-clear.
    stage.pass_time(10)
    stage.dies(stage.loaded("qwen"))
    stage.serve("r5", "qwen")
    assert stage.refused("r5").retry_after == 20.0


def test_the_breaker_closes_once_the_model_has_been_running_for_a_while() -> None:
    stage = broken(2)
    stage.loaded("qwen")
    stage.pass_time(29)
    assert not stage.stored(BreakerClosed)
    stage.pass_time(2)
    (closed,) = stage.stored(BreakerClosed)
    assert closed.reason == "it has been running long enough"
    assert not stage.state.breakers


def test_the_breaker_closes_only_once_the_model_has_been_running_for_as_long_as_it_loads() -> None:
    stage = broken(2).serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    stage.engine_is(spec, "starting").pass_time(100)
    stage.engine_is(spec, "ready").pass_time(90)
    assert not stage.stored(BreakerClosed)
    stage.pass_time(11)
    assert stage.stored(BreakerClosed)


def test_the_breaker_does_not_count_what_failed_long_before() -> None:
    stage = broken(2).pass_time(1801).serve("r1", "qwen")
    stage.dies(stage.spec_of("qwen"))
    stage.serve("r2", "qwen")
    stage.spec_of("qwen")


def test_the_breaker_outlives_a_restart() -> None:
    stage = broken(3).rebuild()
    stage.serve("r1", "qwen")
    assert stage.refused("r1").code == "breaker_open"


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_the_breaker_ignores_jumps_of_the_wall_clock(jump: float) -> None:
    stage = broken(3)
    stage.serve("r1", "qwen")
    stage.clock.jump(jump)
    stage.serve("r2", "qwen")
    assert stage.refused("r2").retry_after == 10.0
    stage.pass_time(10).serve("r3", "qwen")
    stage.spec_of("qwen")


def test_the_breaker_of_an_earlier_life_is_clamped_when_the_clock_has_jumped() -> None:
    stage = broken(3)
    stage.clock.jump(-86_400.0)
    stage.rebuild().serve("r1", "qwen")
    assert stage.refused("r1").retry_after == 300.0
    stage.pass_time(300).serve("r2", "qwen")
    stage.spec_of("qwen")


def test_a_model_that_is_polled_for_hours_is_started_a_bounded_number_of_times() -> None:
    stage = begun(QWEN)
    for second in range(3600):
        stage.advance(1)
        stage.serve(f"r{second}", "qwen")
        if stage.loads:
            stage.dies(stage.spec_of("qwen"))
            stage.engines["llama.cpp"].clear()
    assert len(stage.stored(LoadAdmitted)) < 20
