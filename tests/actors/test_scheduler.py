"""Every numbered step of a scheduler turn, and every branch of a request's way through it."""

from __future__ import annotations

from typing import Any

import pytest
from greenroom.actors import events as ev
from greenroom.actors import messages as msg
from greenroom.actors.kernel.core import Recovered
from greenroom.actors.ledger import Memory
from greenroom.actors.scheduler_context import Limits
from stage import (
    GIB,
    LLAMA,
    NO_SPACE,
    OFFLINE,
    Stage,
    absent,
    installation,
    installed,
    model,
)

QWEN, PHI, BERT = model("qwen"), model("phi"), model("bert")


def begun(*models: Any, installed_ones: Any = ("llama.cpp",), **more: Any) -> Stage:
    return Stage(**more).begin(*models, installed_ones=installed_ones)


def room_for(models: int) -> Memory:
    return Memory(budget=models * GIB, available=models * GIB)


class TestARequest:
    def test_for_a_cold_model_is_loaded_and_then_granted_a_place(self) -> None:
        stage = begun(QWEN)
        stage.serve("r1", "qwen")
        (spec,) = stage.loads
        assert stage.told("runner/llama.cpp") == [msg.StartEngine(spec=spec)]
        stage.engine_is(spec, "starting")
        assert "r1" not in stage.outcomes
        stage.engine_is(spec, "ready")
        granted = stage.granted("r1")
        assert (granted.engine_id, granted.endpoint) == (spec.engine_id, f"/run/{spec.engine_id}.sock")
        assert stage.gates.inside(spec.engine_id) == {"r1"}

    def test_for_a_ready_engine_is_granted_without_an_event(self) -> None:
        stage = begun(QWEN)
        stage.loaded("qwen")
        stage.serve("r2", "qwen").then()
        assert stage.granted("r2").backend == "llama.cpp"

    def test_joins_the_load_that_is_under_way(self) -> None:
        stage = begun(QWEN)
        for number in range(50):
            stage.serve(f"r{number}", "qwen")
        assert len(stage.stored(ev.LoadAdmitted)) == 1
        spec = stage.spec_of("qwen")
        stage.engine_is(spec, "ready")
        assert stage.gates.inside(spec.engine_id) == {f"r{number}" for number in range(50)}

    def test_that_leaves_in_the_middle_of_a_load_does_not_end_it(self) -> None:
        stage = begun(QWEN)
        stage.serve("r1", "qwen").serve("r2", "qwen")
        stage.when(msg.Abandon(request_id="r1")).rest()
        assert stage.refused("r1").code == "abandoned"
        stage.engine_is(stage.spec_of("qwen"), "ready")
        assert stage.granted("r2")
        assert len(stage.stored(ev.LoadAdmitted)) == 1

    def test_that_leaves_before_its_grant_is_seen_gives_its_place_back(self) -> None:
        stage = begun(QWEN)
        spec = stage.loaded("qwen")
        stage.serve("r2", "qwen")
        stage.when(msg.Abandon(request_id="r2")).rest()
        assert not stage.gates.inside(spec.engine_id)

    def test_that_nobody_made_may_be_abandoned(self) -> None:
        stage = begun(QWEN)
        stage.when(msg.Abandon(request_id="nobody"))
        stage.then()
        assert stage.reply is None

    def test_with_an_id_that_waits_already_waits_once(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen").serve("r1", "qwen")
        assert len(stage.seen.queue) == 1

    def test_for_a_model_that_is_not_here_is_told_how_to_get_it(self) -> None:
        stage = begun()
        stage.serve("r1", "nemo").then()
        refusal = stage.refused("r1")
        assert (refusal.status, refusal.message) == (
            404,
            'model "nemo" is not here; run: greenroom pull nemo',
        )

    def test_past_the_bound_of_the_queue_is_asked_to_come_back(self) -> None:
        stage = begun(QWEN, limits=Limits(queue=2))
        stage.serve("r1", "qwen").serve("r2", "qwen").serve("r3", "qwen")
        refusal = stage.refused("r3")
        assert (refusal.status, refusal.code, refusal.retry_after) == (429, "queue_full", 5.0)

    def test_that_waits_too_long_is_refused_while_its_load_goes_on(self) -> None:
        stage = begun(QWEN, limits=Limits(max_wait=300))
        stage.serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        stage.engine_is(spec, "starting")
        while "r1" not in stage.outcomes:
            stage.wake()
        refusal = stage.refused("r1")
        assert (refusal.status, refusal.code) == (503, "not_ready_yet")
        assert "not ready after 300 s; it is still loading qwen on llama.cpp" in refusal.message
        assert stage.loads == [spec]

    def test_is_told_what_it_waits_for(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen")
        assert stage.informed["r1"].phase == "loading"
        assert stage.informed["r1"].follows == f"load/{stage.spec_of('qwen').engine_id}"

    def test_is_told_its_place_and_when_it_moves_up(self) -> None:
        stage = begun(QWEN)
        for number in (1, 2, 3):
            stage.serve(f"r{number}", "qwen", caller="a")
        stage.serve("r4", "qwen", caller="b")
        places = {one: stage.informed[one].place for one in ("r1", "r2", "r3", "r4")}
        assert places == {"r1": 1, "r4": 2, "r2": 3, "r3": 4}, "fair between callers"
        stage.when(msg.Abandon(request_id="r4")).rest().pass_time(2)
        assert [stage.informed[one].place for one in ("r1", "r2", "r3")] == [1, 2, 3]
        queue = stage.when(msg.ReadLedger()).reply.queue
        assert [(one.request_id, one.place, one.waited, one.left) for one in queue] == [
            *(("r1", 1, 2.0, 298.0), ("r2", 2, 2.0, 298.0), ("r3", 3, 2.0, 298.0)),
        ]
        assert queue[0].message == "loading qwen on llama.cpp"


class TestTheFirstMoments:
    def test_before_anybody_has_told_a_request_waits_and_time_refuses_it(self) -> None:
        stage = Stage(limits=Limits(max_wait=30))
        stage.serve("r1", "qwen").then()
        assert stage.informed["r1"].phase == "starting"
        stage.wake()
        assert stage.refused("r1").code == "not_ready_yet"

    def test_a_silent_runner_keeps_new_loads_waiting_but_not_what_is_ready(self) -> None:
        stage = begun(QWEN, PHI)
        spec = stage.loaded("qwen")
        stage.when(msg.Drain())  # volatile, lost with the rest
        super(Stage, stage).rebuild().when(Recovered()).rest()
        stage.when(msg.ModelList(models=(QWEN, PHI), version=1)).rest()
        stage.hear_installer()
        stage.engine_is(spec, "ready")
        stage.serve("r1", "qwen").serve("r2", "phi")
        assert stage.granted("r1")
        assert "r2" not in stage.outcomes
        for name in ("mlx", "vllm", "vllm-metal"):
            stage.hear_runner(name)
        assert stage.spec_of("phi")

    def test_gates_of_engines_whose_runner_is_silent_are_kept(self) -> None:
        stage = begun(QWEN)
        spec = stage.loaded("qwen")
        stage.serve("r1", "qwen")
        super(Stage, stage).rebuild().when(Recovered()).rest()
        stage.hear_library().hear_installer().hear_runner("mlx")
        assert stage.gates.inside(spec.engine_id) == {"r1"}

    def test_a_daemon_that_stops_before_it_has_heard_refuses_at_once(self) -> None:
        stage = Stage().serve("r1", "qwen")
        stage.when(msg.Drain()).rest()
        assert stage.refused("r1").code == "stopping"
        assert "drained" not in stage.outcomes


class TestEnds:
    def test_a_load_that_fails_tells_everybody_who_waited_why(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen").serve("r2", "qwen")
        spec = stage.spec_of("qwen")
        stage.dies(spec, summary="It ran out of memory (SIGKILL).")
        for request in ("r1", "r2"):
            refusal = stage.refused(request)
            assert (refusal.status, refusal.code) == (500, "engine_failed")
            assert refusal.message == "It ran out of memory (SIGKILL)."
            assert f"greenroom logs {spec.engine_id}" in refusal.advice
        (failed,) = stage.stored(ev.LoadFailed)
        assert not failed.was_ready
        assert not stage.loads

    def test_an_engine_that_dies_while_it_is_ready_is_loaded_again_by_the_next_request(self) -> None:
        stage = begun(QWEN)
        spec = stage.loaded("qwen")
        stage.dies(spec)
        (failed,) = stage.stored(ev.LoadFailed)
        assert failed.was_ready
        assert not stage.gates.readings()
        stage.serve("r2", "qwen")
        assert stage.spec_of("qwen").engine_id != spec.engine_id

    def test_who_waits_for_an_engine_that_got_lost_is_loaded_another_one(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        stage.engine_is(spec, "starting")
        stage.dies(spec, code=None, lost=True, summary="its keeper is gone")
        assert "r1" not in stage.outcomes
        (failed,) = stage.stored(ev.LoadFailed)
        assert failed.failure.code == "engine_lost"
        stage.engine_is(stage.spec_of("qwen"), "ready")
        assert stage.granted("r1")

    @pytest.mark.parametrize("how", [{"lost": True}, {"expected": True}])
    def test_what_is_not_the_models_fault_does_not_count_against_it(self, how: dict[str, Any]) -> None:
        stage = begun(QWEN)
        for number in range(5):
            stage.serve(f"r{number}", "qwen")
            stage.dies(stage.spec_of("qwen"), **how)
            stage.when(msg.Abandon(request_id=f"r{number}")).rest()
        assert not stage.state.breakers

    def test_a_start_is_told_again_until_its_runner_has_told_of_it(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        stage.pass_time(2)
        assert stage.sent(msg.StartEngine) == [msg.StartEngine(spec=spec)]
        stage.pass_time(3)
        assert stage.sent(msg.StartEngine) == [msg.StartEngine(spec=spec)] * 2
        stage.engine_is(spec, "starting").pass_time(20)
        assert len(stage.sent(msg.StartEngine)) == 2

    def test_a_start_that_is_never_taken_is_given_up_and_its_memory_with_it(self) -> None:
        stage = begun(QWEN, limits=Limits(max_wait=50)).serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        for _ in range(11):
            stage.pass_time(5).hear_runner()
        assert not stage.sent(msg.BarEngine)
        stage.pass_time(5)
        assert stage.sent(msg.BarEngine) == [msg.BarEngine(engine_id=spec.engine_id)]
        stage.hear_runner()
        (failed,) = stage.stored(ev.LoadFailed)
        assert failed.failure.code == "engine_lost"
        assert not stage.loads
        assert stage.refused("r1").code == "not_ready_yet"

    def test_a_start_that_may_still_be_on_its_way_keeps_its_memory(self) -> None:
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
        assert stage.granted("r2")
        assert not stage.sent(msg.StopEngine)

    def test_an_engine_that_was_met_and_is_not_told_of_any_more_is_not_started_again(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        stage.engine_is(spec, "ready").leave("r1")
        del stage.engines["llama.cpp"][spec.engine_id]
        stage.hear_runner()
        assert [type(one) for one in stage.told("runner/llama.cpp")] == [msg.BarEngine]
        assert stage.loads == [spec]
        stage.hear_runner()
        (failed,) = stage.stored(ev.LoadFailed)
        assert failed.failure.code == "engine_lost"
        assert len(stage.sent(msg.StartEngine)) == 1


class TestARestart:
    def test_a_list_that_was_on_its_way_before_says_nothing(self) -> None:
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
        assert not stage.stored(ev.LoadFailed)

    def test_owners_who_say_nothing_are_asked_again(self) -> None:
        stage = Stage().when(Recovered()).rest()
        for owner in ("installer", "library", "runner/llama.cpp", "runner/mlx"):
            assert len(stage.sent(msg.RollCall, owner)) == 1
        stage.hear_installer().hear_runner("mlx").pass_time(5)
        counts = [len(stage.sent(msg.RollCall, one)) for one in ("installer", "library", "runner/mlx")]
        assert counts == [1, 2, 1]

    def test_an_engine_that_is_still_ready_serves_again_without_a_new_start(self) -> None:
        stage = begun(QWEN)
        spec = stage.loaded("qwen")
        stage.gates.keep(())  # another daemon has other gates
        stage.rebuild()
        assert not stage.told("runner/llama.cpp")
        stage.serve("r1", "qwen").then()
        assert stage.granted("r1").engine_id == spec.engine_id
        assert len(stage.stored(ev.LoadAdmitted)) == 1

    def test_an_engine_that_died_meanwhile_has_failed_with_its_reason(self) -> None:
        stage = begun(QWEN)
        spec = stage.loaded("qwen")
        stage.engines["llama.cpp"] = {}
        stage.gates.keep(())
        stage.rebuild().hear_runner()
        (failed,) = stage.stored(ev.LoadFailed)
        assert (failed.engine_id, failed.failure.code) == (spec.engine_id, "engine_lost")
        assert not stage.state.breakers

    def test_a_load_that_was_still_starting_is_waited_for(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        stage.engine_is(spec, "starting").rebuild()
        stage.serve("r2", "qwen")
        assert len(stage.loads) == 1
        stage.engine_is(spec, "ready")
        assert stage.granted("r2")

    def test_an_engine_that_shall_not_be_is_ended(self) -> None:
        stage = begun(QWEN)
        spec = stage.loaded("qwen")
        stage.when(msg.Unload(all=True)).rest()
        stage.gates.keep(())
        stage.rebuild()
        assert [one.engine_id for one in stage.sent(msg.StopEngine)] == [spec.engine_id]

    def test_nothing_that_is_seen_grows_with_the_number_of_loads(self) -> None:
        stage = begun(QWEN)
        for number in range(30):
            spec = stage.loaded("qwen", f"r{number}", keep_alive=5.0, caller=f"c{number}")
            stage.when(msg.Unload(all=True)).rest()
            stage.dies(spec, expected=True)
            stage.engines["llama.cpp"].clear()
        seen = stage.pass_time(1).seen
        volatile = (seen.met, seen.begun, seen.start_told, seen.leaving, seen.stop_told, seen.keep_alive)
        assert not any(volatile)
        assert not seen.queue


class TestTheBackend:
    def test_that_is_absent_and_the_only_possible_one_is_told_how_to_install(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"))
        stage.serve("r1", "gemma")
        refusal = stage.refused("r1")
        assert refusal.status == 412
        assert refusal.message == (
            'backend "mlx" is not installed; run: greenroom install-runner --backend mlx'
        )
        assert refusal.numbers == {"download_bytes": 350_000_000.0}
        assert not stage.told("installer")

    def test_is_told_and_recorded_with_the_others_that_could_serve(self) -> None:
        stage = begun(model("gemma", format="safetensors"))
        stage.serve("r1", "gemma")
        advice = "(or, with vllm: greenroom install-runner --backend vllm)"
        assert stage.refused("r1").advice == advice
        (refused,) = stage.stored(ev.LoadRefused)
        assert refused.advice == advice

    def test_is_installed_by_the_request_under_auto(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"), policy="auto")
        stage.serve("r1", "gemma").then()
        (ensure,) = stage.told("installer")
        assert (ensure.backend, ensure.wanted_by) == ("mlx", "request")
        assert stage.informed["r1"].follows == "install/mlx"
        stage.hear_installer(absent("mlx", job="mlx.1"))
        stage.hear_installer(installed("mlx"))
        assert stage.spec_of("gemma").backend == "mlx"

    def test_is_never_installed_by_a_request_under_never(self) -> None:
        stage = Stage(policy="never").begin(QWEN, installed_ones=())
        stage.serve("r1", "qwen")
        assert stage.refused("r1").status == 412
        assert not stage.told("installer")

    def test_a_request_may_bring_a_policy_of_its_own(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"), policy="auto")
        stage.serve("r1", "gemma", policy="ask")
        assert stage.refused("r1").code == "backend_not_installed"

    def test_that_the_path_names_is_binding(self) -> None:
        stage = begun(model("gemma", format="safetensors"), installed_ones=("mlx",))
        stage.serve("r1", "gemma", backend="vllm")
        refusal = stage.refused("r1")
        assert (refusal.status, refusal.subject) == (412, "vllm")
        assert not stage.loads

    def test_that_the_path_names_does_not_use_another_backends_engine(self) -> None:
        stage = begun(model("gemma", format="safetensors"), installed_ones=("mlx",))
        stage.loaded("gemma")
        stage.serve("r1", "gemma", backend="vllm")
        assert stage.refused("r1").code == "backend_not_installed"

    def test_that_is_preferred_and_absent_never_blocks(self) -> None:
        stage = begun(model("gemma", format="safetensors"), installed_ones=("mlx",))
        stage.serve("r1", "gemma")
        assert stage.spec_of("gemma").backend == "mlx"
        (chosen,) = stage.stored(ev.BackendChosen)
        advice = "vllm would be preferred but is not installed; run: greenroom install-runner --backend vllm"
        assert advice in chosen.reasons

    def test_that_is_the_default_one_is_waited_for_while_it_is_installed(self) -> None:
        stage = Stage().begin(QWEN, installed_ones=())
        stage.hear_installer(absent("llama.cpp", job="llama.cpp.1", wanted=True))
        stage.serve("r1", "qwen")
        assert not stage.told("installer")
        assert stage.informed["r1"].follows == "install/llama.cpp"
        stage.hear_installer(installed("llama.cpp"))
        assert stage.spec_of("qwen").backend == "llama.cpp"


class TestAnInstallation:
    def wanted(self, requests: int = 1, **more: Any) -> Stage:
        stage = begun(model("gemma", format="safetensors-mlx"), policy="auto", **more)
        for number in range(requests):
            stage.serve(f"r{number}", "gemma")
        return stage

    def token(self, stage: Stage) -> dict[str, str]:
        return {"mlx": stage.seen.wishes["mlx"].token}

    def test_is_wished_for_once_by_fifty_requests(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"), policy="auto")
        told = 0
        for number in range(50):
            told += len(stage.serve(f"r{number}", "gemma").told("installer"))
        assert told == 1

    def test_that_fails_tells_everybody_who_waited_why(self) -> None:
        stage = self.wanted(3)
        stage.hear_installer(absent("mlx", job="mlx.1"), heard=self.token(stage))
        stage.hear_installer(absent("mlx", failure=NO_SPACE))
        for number in range(3):
            refusal = stage.refused(f"r{number}")
            assert (refusal.code, refusal.status) == ("no_space", 507)
            assert refusal.message == "mlx could not be installed: There is no room on the disk."
        assert len(stage.stored(ev.LoadRefused)) == 1
        assert not stage.told("installer")

    def test_that_failed_between_two_lists_is_noticed(self) -> None:
        stage = self.wanted()
        stage.hear_installer(absent("mlx", failure=NO_SPACE), heard=self.token(stage))
        assert stage.refused("r0").code == "no_space"

    def test_that_was_wished_for_is_not_refused_by_a_list_older_than_the_wish(self) -> None:
        stage = self.wanted()
        stage.hear_installer(absent("mlx", failure=OFFLINE))
        assert "r0" not in stage.outcomes

    def test_may_be_tried_again_by_the_next_request(self) -> None:
        stage = self.wanted()
        stage.hear_installer(absent("mlx", failure=OFFLINE), heard=self.token(stage))
        stage.serve("again", "gemma")
        (ensure,) = stage.told("installer")
        assert ensure.token == "again"

    def test_that_keeps_failing_is_not_tried_on_every_poll(self) -> None:
        stage = self.wanted()
        wishes = 0
        for number in range(1, 500):
            if "mlx" in stage.seen.wishes:
                wishes += 1
                stage.hear_installer(absent("mlx", failure=NO_SPACE), heard=self.token(stage))
            stage.pass_time(1).serve(f"r{number}", "gemma")
        assert wishes < 12
        refusal = stage.refused("r498")
        assert "It is tried again in" in refusal.message
        assert refusal.retry_after > 0
        assert len(stage.stored(ev.LoadRefused)) == 1

    def test_wish_that_is_not_heard_is_repeated_with_the_same_token(self) -> None:
        stage = self.wanted()
        stage.pass_time(6)
        (again,) = stage.told("installer")
        assert again.token == "r0"

    def test_wish_that_is_never_heard_is_refused_by_time(self) -> None:
        stage = self.wanted(limits=Limits(max_wait=60))
        for _ in range(13):
            stage.pass_time(5)
        assert stage.refused("r0").code == "not_ready_yet"
        assert "still installing mlx" in stage.refused("r0").message

    def test_that_somebody_cancels_is_answered(self) -> None:
        stage = self.wanted()
        stage.hear_installer(absent("mlx", job="mlx.1"))
        stage.hear_installer(absent("mlx"))
        assert stage.refused("r0").message == "The installation of mlx has ended without one."

    def test_another_job_of_the_same_backend_is_waited_for_as_well(self) -> None:
        stage = self.wanted()
        stage.hear_installer(absent("mlx", job="mlx.1"))
        stage.hear_installer(absent("mlx", job="mlx.2"))
        assert "r0" not in stage.outcomes
        stage.hear_installer(installed("mlx"))
        assert stage.loads


class TestTheBreaker:
    def broken(self, failures: int) -> Stage:
        stage = begun(QWEN, PHI)
        for number in range(failures):
            stage.serve(f"f{number}", "qwen")
            stage.dies(stage.spec_of("qwen"), summary="It cannot read this model.")
        return stage

    def test_opens_after_three_failures_and_says_when_to_come_back(self) -> None:
        stage = self.broken(3)
        stage.serve("r1", "qwen")
        refusal = stage.refused("r1")
        assert (refusal.status, refusal.code, refusal.retry_after) == (503, "breaker_open", 10.0)
        assert refusal.message.endswith("The last failure: It cannot read this model.")

    def test_lets_one_load_through_after_its_time_and_doubles_when_that_fails(self) -> None:
        stage = self.broken(3).pass_time(10)
        stage.serve("r1", "qwen")
        stage.dies(stage.spec_of("qwen"))
        stage.serve("r2", "qwen")
        assert stage.refused("r2").retry_after == 20.0

    def test_is_bounded(self) -> None:
        stage = self.broken(3)
        for number in range(20):
            stage.pass_time(300).serve(f"r{number}", "qwen")
            stage.dies(stage.spec_of("qwen"))
        stage.serve("last", "qwen")
        assert stage.refused("last").retry_after == 300.0

    def test_leaves_other_models_alone(self) -> None:
        stage = self.broken(3)
        stage.loaded("phi")

    def test_opens_for_a_model_that_answers_once_before_each_death(self) -> None:
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

    def test_closes_once_the_model_has_been_running_for_a_while(self) -> None:
        stage = self.broken(2)
        stage.loaded("qwen")
        stage.pass_time(29)
        assert not stage.stored(ev.BreakerClosed)
        stage.pass_time(2)
        (closed,) = stage.stored(ev.BreakerClosed)
        assert closed.reason == "it has been running for a while"
        assert not stage.state.breakers

    def test_closes_only_once_the_model_has_been_running_for_as_long_as_it_loads(self) -> None:
        stage = self.broken(2).serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        stage.engine_is(spec, "starting").pass_time(100)
        stage.engine_is(spec, "ready").pass_time(90)
        assert not stage.stored(ev.BreakerClosed)
        stage.pass_time(11)
        assert stage.stored(ev.BreakerClosed)

    def test_does_not_count_what_failed_long_before(self) -> None:
        stage = self.broken(2).pass_time(1801).serve("r1", "qwen")
        stage.dies(stage.spec_of("qwen"))
        stage.serve("r2", "qwen")
        assert stage.spec_of("qwen")

    def test_outlives_a_restart(self) -> None:
        stage = self.broken(3).rebuild()
        stage.serve("r1", "qwen")
        assert stage.refused("r1").code == "breaker_open"

    @pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
    def test_is_not_impressed_by_a_wall_clock_that_jumps(self, jump: float) -> None:
        stage = self.broken(3)
        stage.serve("r1", "qwen")
        stage.clock.jump(jump)
        stage.serve("r2", "qwen")
        assert stage.refused("r2").retry_after == 10.0
        stage.pass_time(10).serve("r3", "qwen")
        assert stage.spec_of("qwen")

    def test_of_an_earlier_life_is_clamped_when_the_clock_has_jumped(self) -> None:
        stage = self.broken(3)
        stage.clock.jump(-86_400.0)
        stage.rebuild().serve("r1", "qwen")
        assert stage.refused("r1").retry_after == 300.0
        stage.pass_time(300).serve("r2", "qwen")
        assert stage.spec_of("qwen")

    def test_a_model_that_is_polled_for_hours_is_started_a_bounded_number_of_times(self) -> None:
        stage = begun(QWEN)
        for second in range(3600):
            stage.advance(1)
            stage.serve(f"r{second}", "qwen")
            if stage.loads:
                stage.dies(stage.spec_of("qwen"))
                stage.engines["llama.cpp"].clear()
        assert len(stage.stored(ev.LoadAdmitted)) < 20


class TestRefusals:
    def test_ten_thousand_of_them_add_at_most_five_events(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"))
        stage._twice = lambda function, *arguments: function(*arguments)  # type: ignore[method-assign]
        before = len(stage.history)
        for number in range(10_000):
            stage.serve("r", "gemma")
            assert stage.outcomes.pop("r").status == 412, number
        assert len(stage.history) - before <= 5

    def test_of_alternating_reasons_are_stored_once_each(self) -> None:
        stage = begun(model("gemma", format="safetensors"))
        for number in range(20):
            stage.serve(f"a{number}", "gemma")
            stage.serve(f"b{number}", "gemma", backend="vllm-metal")
        assert [one.code for one in stage.stored(ev.LoadRefused)] == [
            "backend_not_installed",
            "unsupported_platform",
        ]

    def test_are_counted_and_told_with_the_next_load(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"))
        for number in range(7):
            stage.serve(f"r{number}", "gemma")
        stage.hear_installer(installed("mlx")).serve("r", "gemma")
        (admitted,) = stage.stored(ev.LoadAdmitted)
        assert admitted.refused_before == 7
        assert not stage.state.refusals


class TestMemory:
    def test_what_can_never_fit_is_refused_at_once_with_the_numbers(self) -> None:
        stage = begun(model("huge", 9 * GIB))
        stage.serve("r1", "huge")
        refusal = stage.refused("r1")
        assert (refusal.status, refusal.code) == (507, "does_not_fit")
        assert refusal.message == "huge needs 9.0 GiB of memory; engines may use 8.0 GiB in all."
        assert refusal.numbers == {"needed": 9.0 * GIB, "budget": 8.0 * GIB, "promised": 0.0}

    def test_context_and_overhead_count(self) -> None:
        stage = begun(model("qwen", kv_bytes_per_token=1000, context_length=4096))
        stage.serve("r1", "qwen")
        assert stage.spec_of("qwen").memory == GIB + 4096 * 1000 + LLAMA.overhead

    def test_loads_in_flight_reserve(self) -> None:
        stage = begun(QWEN, PHI, memory=room_for(1))
        stage.serve("r1", "qwen").serve("r2", "phi")
        assert len(stage.loads) == 1
        assert stage.informed["r2"].phase == "waiting_for_memory"

    def test_the_least_recently_used_idle_engine_makes_room(self) -> None:
        stage = begun(QWEN, PHI, BERT, memory=room_for(2))
        stage.loaded("qwen")
        stage.pass_time(1)
        stage.loaded("phi")
        stage.pass_time(1).serve("again", "qwen").leave("again")
        stage.serve("r1", "bert")
        (evicted,) = stage.stored(ev.EvictionDecided)
        assert (evicted.model_ref, evicted.reason, evicted.in_favour_of) == ("phi", "room", "bert")
        assert (evicted.needed, evicted.free) == (GIB, 0)

    def test_room_counts_only_once_the_engine_is_gone(self) -> None:
        stage = begun(QWEN, PHI, memory=room_for(1))
        spec = stage.loaded("qwen")
        stage.serve("r1", "phi")
        assert not stage.loads
        stage.engine_is(spec, "stopping")
        assert not stage.loads
        stage.engine_is(spec, "gone")
        assert stage.spec_of("phi")

    def test_only_as_many_as_needed_go(self) -> None:
        stage = begun(QWEN, PHI, BERT, memory=room_for(3))
        for name in ("qwen", "phi", "bert"):
            stage.loaded(name)
            stage.pass_time(1)
        stage.hear_library(model("new"))
        stage.serve("r1", "new").pass_time(1)
        assert [one.model_ref for one in stage.stored(ev.EvictionDecided)] == ["qwen"]

    def test_an_engine_in_use_is_never_evicted(self) -> None:
        stage = begun(QWEN, PHI, memory=room_for(1))
        stage.loaded("qwen")
        stage.serve("busy", "qwen").serve("r1", "phi")
        assert not stage.stored(ev.EvictionDecided)
        stage.leave("busy")
        (evicted,) = stage.stored(ev.EvictionDecided)
        assert evicted.model_ref == "qwen"

    def test_an_engine_that_was_granted_a_moment_ago_is_not_evicted(self) -> None:
        stage = begun(QWEN, PHI, memory=room_for(1))
        spec = stage.loaded("qwen")
        # Both are in the queue when the engine is looked at: its gate does not show the first one yet.
        for request, name in (("r1", "qwen"), ("r2", "phi")):
            stage.when(msg.Serve(request_id=request, model_id=f"sha256:{name}", model_ref=name))
        stage.rest()
        assert stage.granted("r1").engine_id == spec.engine_id
        assert not stage.stored(ev.EvictionDecided)

    def test_a_request_that_enters_an_engine_at_the_worst_moment_is_served(self) -> None:
        stage = begun(QWEN, PHI, memory=room_for(1))
        spec = stage.loaded("qwen")
        stage.when(msg.Serve(request_id="r1", model_id=PHI.id, model_ref="phi"))
        stage.settle()
        assert stage.stored(ev.EvictionDecided)
        # The front door does not ask anybody.
        assert stage.gates.enter(QWEN.id, "completion", "", "late")
        stage.rest().pass_time(1)
        assert not stage.sent(msg.StopEngine)
        stage.leave("late")
        (stop,) = stage.sent(msg.StopEngine)
        assert stop.engine_id == spec.engine_id

    def test_a_pinned_model_is_never_evicted_and_the_refusal_names_what_it_holds(self) -> None:
        stage = begun(QWEN, PHI, memory=room_for(1))
        stage.when(msg.Configure(model_id=QWEN.id, model_ref="qwen", keep_alive=-1)).rest()
        stage.loaded("qwen")
        stage.serve("r1", "phi")
        refusal = stage.refused("r1")
        assert (refusal.status, refusal.code) == (507, "no_room")
        assert "pinned models hold 1.0 GiB of the 1.0 GiB" in refusal.message
        assert not stage.stored(ev.EvictionDecided)

    def test_pressure_from_outside_makes_wait_and_passes(self) -> None:
        stage = begun(QWEN, memory=Memory(budget=8 * GIB, available=0))
        stage.serve("r1", "qwen")
        assert stage.informed["r1"].message == "waiting for memory: it needs 1.0 GiB, 0 MiB are free"
        stage.memory = room_for(8)
        stage.pass_time(5)
        assert stage.spec_of("qwen")

    def test_pressure_that_lasts_is_refused_by_time_with_the_numbers(self) -> None:
        stage = begun(QWEN, memory=Memory(budget=8 * GIB, available=0), limits=Limits(max_wait=10))
        stage.serve("r1", "qwen").wake()
        assert "it is still waiting for memory: it needs 1.0 GiB" in stage.refused("r1").message

    def test_nobody_takes_the_room_that_is_made_for_another(self) -> None:
        stage = begun(QWEN, PHI, model("big", 2 * GIB), memory=room_for(2))
        spec = stage.loaded("qwen")
        stage.serve("r1", "big").serve("r2", "phi")
        assert [one.model_ref for one in stage.stored(ev.EvictionDecided)] == ["qwen"]
        assert stage.informed["r2"].message == "waiting for memory, behind big"
        stage.dies(spec, expected=True)
        assert stage.spec_of("big")

    def test_what_fits_overtakes_who_waits_for_an_engine_in_use(self) -> None:
        stage = begun(QWEN, PHI, model("big", 2 * GIB), memory=room_for(2))
        stage.loaded("qwen")
        stage.serve("busy", "qwen").serve("r1", "big").serve("r2", "phi")
        assert stage.spec_of("phi")

    def test_in_the_end_nobody_overtakes_who_waits_for_an_engine_in_use(self) -> None:
        limits = Limits(max_wait=100)
        stage = begun(QWEN, PHI, model("big", 2 * GIB), memory=room_for(2), limits=limits)
        stage.loaded("qwen")
        stage.serve("busy", "qwen").serve("r1", "big").pass_time(50).serve("r2", "phi")
        assert stage.informed["r2"].message == "waiting for memory, behind big"
        stage.pass_time(50)
        assert stage.refused("r1").code == "not_ready_yet"
        assert stage.spec_of("phi")

    def test_what_waits_for_other_programs_memory_is_overtaken(self) -> None:
        stage = begun(QWEN, model("big", 4 * GIB), memory=Memory(budget=8 * GIB, available=2 * GIB))
        stage.serve("r1", "big").serve("r2", "qwen")
        assert stage.spec_of("qwen")


class TestFairness:
    def test_a_caller_with_many_models_does_not_starve_another(self) -> None:
        names = [f"m{number}" for number in range(4)]
        stage = begun(*(model(name) for name in names), memory=room_for(1))
        stage.serve("a0", "m0", caller="a").serve("a1", "m1", caller="a")
        stage.serve("a2", "m2", caller="a").serve("b0", "m3", caller="b")
        order = []
        for _ in names:
            (spec,) = stage.loads
            order.append(spec.model_ref)
            stage.engine_is(spec, "ready")
            (request,) = stage.gates.inside(spec.engine_id)
            stage.leave(request)
            stage.pass_time(0.1).dies(spec, expected=True)
        assert order == ["m0", "m3", "m1", "m2"]

    def test_within_a_caller_the_first_comes_first(self) -> None:
        stage = begun(QWEN, PHI, BERT, memory=room_for(1))
        stage.serve("r1", "qwen").serve("r2", "phi").serve("r3", "bert")
        assert stage.loads[0].model_ref == "qwen"
        assert [one.request_id for one in stage.seen.queue] == ["r1", "r2", "r3"]


class TestKeepAlive:
    def evicted(self, stage: Stage) -> list[str]:
        return [one.reason for one in stage.stored(ev.EvictionDecided)]

    def test_an_idle_engine_ends_when_its_time_is_over_and_not_before(self) -> None:
        stage = begun(QWEN, limits=Limits(keep_alive=300))
        spec = stage.loaded("qwen")
        stage.pass_time(299.9)
        assert not self.evicted(stage)
        stage.wake()
        (event,) = stage.stored(ev.EvictionDecided)
        assert (event.reason, event.idle_seconds) == ("idle", 300.0)
        # Its gate is closed in this look, and the next one sees that nobody slipped in.
        stage.pass_time(0.01)
        assert stage.told("runner/llama.cpp") == [
            msg.StopEngine(engine_id=spec.engine_id, reason="it is not wanted any more")
        ]

    def test_a_request_begins_it_anew(self) -> None:
        stage = begun(QWEN, limits=Limits(keep_alive=300))
        stage.loaded("qwen")
        stage.pass_time(200).serve("r1", "qwen").pass_time(1000)
        assert not self.evicted(stage)
        stage.leave("r1").pass_time(299)
        assert not self.evicted(stage)
        stage.pass_time(1)
        assert self.evicted(stage) == ["idle"]

    def test_of_zero_ends_the_engine_after_its_request(self) -> None:
        stage = begun(QWEN, limits=Limits(keep_alive=0))
        stage.serve("r1", "qwen")
        stage.engine_is(stage.spec_of("qwen"), "ready").pass_time(10)
        assert stage.granted("r1")
        assert not self.evicted(stage)
        stage.leave("r1")
        assert self.evicted(stage) == ["idle"]

    def test_of_zero_does_not_end_the_engine_under_the_next_request(self) -> None:
        stage = begun(QWEN, limits=Limits(keep_alive=0))
        stage.serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        stage.engine_is(spec, "ready")
        stage.gates.leave("r1")
        stage.serve("r2", "qwen")
        assert stage.granted("r2").engine_id == spec.engine_id
        assert not self.evicted(stage)

    @pytest.mark.parametrize("seconds", [-1.0, -0.5])
    def test_below_zero_is_for_ever(self, seconds: float) -> None:
        stage = begun(QWEN, limits=Limits(keep_alive=seconds))
        stage.loaded("qwen")
        stage.pass_time(1e6)
        assert not self.evicted(stage)

    def test_a_requests_wish_goes_before_the_configured_and_that_before_the_default(self) -> None:
        stage = begun(QWEN, limits=Limits(keep_alive=300))
        stage.when(msg.Configure(model_id=QWEN.id, model_ref="qwen", keep_alive=50)).rest()
        stage.loaded("qwen")
        stage.pass_time(49)
        stage.serve("r1", "qwen", keep_alive=10.0).leave("r1")
        stage.pass_time(9)
        assert not self.evicted(stage)
        stage.pass_time(1)
        assert self.evicted(stage) == ["idle"]

    def test_a_requests_wish_ends_with_the_engine_that_served_it(self) -> None:
        stage = begun(QWEN)
        spec = stage.loaded("qwen", keep_alive=-1.0)
        stage.when(msg.Unload(all=True)).rest()
        stage.engine_is(spec, "gone")
        stage.loaded("qwen", "again")
        stage.pass_time(300)
        assert self.evicted(stage) == ["unload", "idle"]

    def test_is_not_impressed_by_a_wall_clock_that_jumps(self) -> None:
        stage = begun(QWEN)
        stage.loaded("qwen")
        stage.clock.jump(86_400)
        stage.pass_time(1)
        assert not self.evicted(stage)


class TestUnload:
    def test_ends_idle_engines_and_leaves_those_in_use(self) -> None:
        stage = begun(QWEN, PHI)
        stage.loaded("qwen")
        stage.loaded("phi")
        stage.serve("busy", "phi")
        stage.when(msg.Unload(all=True))
        assert stage.reply == msg.Unloaded(engines=1)
        assert [spec.model_ref for spec in stage.rest().loads] == ["phi"]

    def test_leaves_an_engine_that_somebody_waits_for(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen")
        stage.engine_is(stage.spec_of("qwen"), "starting")
        stage.when(msg.Unload(all=True))
        assert stage.reply == msg.Unloaded(engines=0)

    def test_of_models_leaves_others(self) -> None:
        stage = begun(QWEN, PHI)
        stage.loaded("qwen")
        stage.loaded("phi")
        stage.when(msg.Unload(model_ids=(QWEN.id,))).rest()
        assert [spec.model_ref for spec in stage.loads] == ["phi"]

    def test_of_a_backend_leaves_others(self) -> None:
        gemma = model("gemma", format="safetensors")
        stage = begun(QWEN, gemma, installed_ones=("llama.cpp", "mlx"))
        stage.loaded("qwen")
        stage.loaded("gemma")
        stage.when(msg.Unload(backend="mlx")).rest()
        assert [spec.backend for spec in stage.loads] == ["llama.cpp"]

    def test_ends_a_pinned_engine_too_since_a_person_asked(self) -> None:
        stage = begun(QWEN, limits=Limits(keep_alive=-1))
        stage.loaded("qwen")
        stage.when(msg.Unload(all=True))
        assert stage.reply == msg.Unloaded(engines=1)

    def test_an_engine_that_does_not_end_is_told_again(self) -> None:
        stage = begun(QWEN)
        spec = stage.loaded("qwen")
        stage.when(msg.Unload(all=True)).rest().pass_time(0.01)
        assert len(stage.told("runner/llama.cpp")) == 1
        assert not stage.pass_time(4).told("runner/llama.cpp")
        assert len(stage.pass_time(1).told("runner/llama.cpp")) == 1
        assert not stage.engine_is(spec, "gone").pass_time(6).told("runner/llama.cpp")


class TestConfigure:
    def configure(self, stage: Stage, **what: Any) -> Any:
        stage.when(msg.Configure(model_id=QWEN.id, model_ref="qwen", **what))
        reply = stage.reply
        stage.rest()
        return reply

    def test_merges_and_says_whether_anything_changed(self) -> None:
        stage = begun(QWEN)
        assert self.configure(stage, context_size=4096).changed
        assert self.configure(stage, flags=("--flash-attn",)).changed
        assert not self.configure(stage, context_size=4096).changed
        stage.serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        assert (spec.context_size, spec.flags) == (4096, ("--flash-attn",))

    def test_survives_a_restart(self) -> None:
        stage = begun(QWEN)
        self.configure(stage, context_size=4096)
        stage.rebuild().serve("r1", "qwen")
        assert stage.spec_of("qwen").context_size == 4096

    def test_ends_an_idle_engine_that_has_another_configuration(self) -> None:
        stage = begun(QWEN)
        stage.loaded("qwen")
        self.configure(stage, context_size=4096)
        (evicted,) = stage.stored(ev.EvictionDecided)
        assert evicted.reason == "reconfigured"

    def test_leaves_an_engine_alone_when_only_keep_alive_changes(self) -> None:
        stage = begun(QWEN)
        stage.loaded("qwen")
        assert self.configure(stage, keep_alive=5.0).changed
        assert stage.loads

    def test_is_refused_while_the_model_is_in_use_and_changes_nothing(self) -> None:
        stage = begun(QWEN)
        stage.loaded("qwen")
        stage.serve("busy", "qwen")
        refusal = self.configure(stage, context_size=4096)
        assert (refusal.status, refusal.code) == (409, "in_use")
        assert refusal.message == "qwen is in use on llama.cpp (1 request: busy)."
        assert not stage.state.configs
        for number in range(5):
            stage.serve(f"more-{number}", "qwen")
        message = self.configure(stage, context_size=4096).message
        assert "in use on llama.cpp (6 requests, " in message
        assert message.endswith(" among them).")

    def test_is_refused_while_the_model_is_loading(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen")
        stage.when(msg.Abandon(request_id="r1")).rest()
        assert self.configure(stage, context_size=4096).message == "qwen is being loaded."


class TestARetiringInstallation:
    def retiring(self) -> msg.BackendStatus:
        one = installation("llama.cpp")
        return msg.BackendStatus(name="llama.cpp", state="retiring", installations=(one,), retiring=(one.id,))

    def test_has_its_engines_ended_and_starts_nothing_new(self) -> None:
        stage = begun(QWEN)
        stage.loaded("qwen")
        stage.hear_installer(self.retiring())
        (evicted,) = stage.stored(ev.EvictionDecided)
        assert evicted.reason == "retiring"
        stage.serve("r1", "qwen")
        assert stage.refused("r1").code == "backend_not_installed"

    def test_lets_requests_inside_come_to_their_end(self) -> None:
        stage = begun(QWEN)
        stage.loaded("qwen")
        stage.serve("busy", "qwen").hear_installer(self.retiring()).pass_time(60)
        assert not stage.sent(msg.StopEngine)
        stage.leave("busy")
        assert stage.sent(msg.StopEngine)

    def test_does_not_wait_longer_than_the_drain_for_them(self) -> None:
        stage = begun(QWEN, limits=Limits(drain=60))
        stage.loaded("qwen")
        stage.serve("busy", "qwen").hear_installer(self.retiring()).pass_time(60)
        stops = stage.sent(msg.StopEngine)
        assert [one.reason for one in stops] == ["its requests did not end in time"]

    def test_is_acknowledged_to_the_runner_behind_everything_that_was_sent_to_it(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        stage.hear_installer(self.retiring())
        # The start is on its way; until the runner has told of it nothing is acknowledged.
        assert not stage.sent(msg.RollCall)[1:]
        stage.engine_is(spec, "starting")
        rolls = stage.sent(msg.RollCall)[1:]
        assert [one.installations for one in rolls] == [stage.seen.statuses_version]

    def test_is_acknowledged_again_in_case_the_runner_was_rebuilt(self) -> None:
        stage = begun(QWEN)
        stage.hear_installer(self.retiring())
        assert stage.told("runner/llama.cpp")
        assert not stage.pass_time(4).told("runner/llama.cpp")
        assert stage.pass_time(1).told("runner/llama.cpp")


class TestDraining:
    def test_ends_every_engine_and_answers_when_none_is_left(self) -> None:
        stage = begun(QWEN, PHI)
        specs = [stage.loaded("qwen"), stage.loaded("phi")]
        stage.when(msg.Drain()).rest()
        assert [one.reason for one in stage.stored(ev.EvictionDecided)] == ["shutdown", "shutdown"]
        assert "drained" not in stage.outcomes
        for spec in specs:
            stage.engine_is(spec, "gone")
        assert stage.outcomes["drained"] == msg.Unloaded(engines=0)

    def test_waits_for_a_start_that_is_on_its_way(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        stage.when(msg.Drain()).rest()
        assert stage.refused("r1").code == "stopping"
        assert "drained" not in stage.outcomes
        stage.engine_is(spec, "starting").engine_is(spec, "gone")
        assert "drained" in stage.outcomes

    def test_admits_nothing_more(self) -> None:
        stage = begun(QWEN)
        stage.when(msg.Drain()).rest()
        stage.serve("r1", "qwen").then()
        assert (stage.refused("r1").status, stage.refused("r1").code) == (503, "stopping")


class TestAFullDisk:
    def test_refuses_what_needs_a_load_and_serves_what_is_ready(self) -> None:
        stage = begun(QWEN, PHI)
        stage.loaded("qwen")
        stage.disk_full = True
        # In one turn: the first needs an event, the second does not.
        for request, name in (("r1", "phi"), ("r2", "qwen")):
            stage.when(msg.Serve(request_id=request, model_id=f"sha256:{name}", model_ref=name))
        stage.rest().then()
        assert (stage.refused("r1").status, stage.refused("r1").code) == (507, "journal_full")
        assert stage.granted("r2")

    def test_never_makes_room_for_a_load_that_could_not_be_recorded(self) -> None:
        stage = begun(QWEN, PHI, memory=room_for(1))
        qwen = stage.loaded("qwen")
        stage.disk_full = True
        stage.serve("r1", "phi").then()
        assert stage.refused("r1").status == 507
        assert [spec.engine_id for spec in stage.loads] == [qwen.engine_id]
        stage.pass_time(3600).then(ev.EvictionDecided)  # that it is idle is recorded all the same

    def test_still_tells_the_real_reason_of_a_refusal(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"))
        stage.disk_full = True
        stage.serve("r1", "gemma").then()
        assert stage.refused("r1").status == 412

    def test_still_opens_the_gate_of_an_engine_that_becomes_ready(self) -> None:
        stage = begun(QWEN, PHI).serve("r1", "qwen")
        stage.disk_full = True
        stage.serve("r2", "phi").engine_is(stage.spec_of("qwen"), "ready")
        assert stage.granted("r1")
        assert stage.refused("r2").status == 507

    def test_is_over_when_there_is_room_again(self) -> None:
        stage = begun(QWEN)
        stage.disk_full = True
        stage.serve("r1", "qwen")
        stage.disk_full = False
        stage.serve("r2", "qwen")
        assert stage.spec_of("qwen")
