"""Which backend a load goes to, the installation it waits for, and the one that is to go."""

from __future__ import annotations

from typing import Any

from greenroom.actors.engine_runner.messages import StopEngine
from greenroom.actors.installer.messages import BackendStatus, Ensure, InstallsAwaited
from greenroom.actors.scheduler.context import Limits
from greenroom.actors.scheduler.events import BackendChosen, EvictionDecided, LoadRefused
from greenroom.actors.scheduler.messages import Abandon
from greenroom.actors.values import RollCall
from stage import NO_SPACE, OFFLINE, Stage, absent, begun, installation, installed, model

QWEN = model("qwen")


class TestTheBackend:
    def test_that_is_absent_and_the_only_possible_one_is_told_how_to_install(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"))
        stage.serve("r1", "gemma")
        refusal = stage.refused("r1")
        assert refusal.kind == "not_ready"
        assert refusal.message == (
            'backend "mlx" is not installed; run: greenroom install-runner --backend mlx'
        )
        assert refusal.numbers == {"download_bytes": 350_000_000.0}
        assert not wishes(stage)

    def test_is_told_and_recorded_with_the_others_that_could_serve(self) -> None:
        stage = begun(model("gemma", format="safetensors"))
        stage.serve("r1", "gemma")
        advice = "(or, with vllm: greenroom install-runner --backend vllm)"
        assert stage.refused("r1").advice == advice
        (refused,) = stage.stored(LoadRefused)
        assert refused.advice == advice

    def test_is_installed_by_the_request_under_auto(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"), policy="auto")
        stage.serve("r1", "gemma").then()
        (ensure,) = wishes(stage)
        assert (ensure.backend, ensure.wanted_by) == ("mlx", "request")
        assert stage.informed["r1"].follows == "install/mlx"
        stage.hear_installer(absent("mlx", job="mlx.1"))
        stage.hear_installer(installed("mlx"))
        assert stage.spec_of("gemma").backend == "mlx"

    def test_is_never_installed_by_a_request_under_never(self) -> None:
        stage = Stage(policy="never").begin(QWEN, installed_ones=())
        stage.serve("r1", "qwen")
        assert stage.refused("r1").kind == "not_ready"
        assert not wishes(stage)

    def test_a_request_may_bring_a_policy_of_its_own(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"), policy="auto")
        stage.serve("r1", "gemma", policy="ask")
        assert stage.refused("r1").code == "backend_not_installed"

    def test_that_the_path_names_is_binding(self) -> None:
        stage = begun(model("gemma", format="safetensors"), installed_ones=("mlx",))
        stage.serve("r1", "gemma", backend="vllm")
        refusal = stage.refused("r1")
        assert (refusal.kind, refusal.subject) == ("not_ready", "vllm")
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
        (chosen,) = stage.stored(BackendChosen)
        advice = "vllm would be preferred but is not installed; run: greenroom install-runner --backend vllm"
        assert advice in chosen.reasons

    def test_that_is_the_default_one_is_waited_for_while_it_is_installed(self) -> None:
        stage = Stage().begin(QWEN, installed_ones=())
        stage.hear_installer(absent("llama.cpp", job="llama.cpp.1", wanted=True))
        stage.serve("r1", "qwen")
        assert not wishes(stage)
        assert stage.informed["r1"].follows == "install/llama.cpp"
        stage.hear_installer(installed("llama.cpp"))
        assert stage.spec_of("qwen").backend == "llama.cpp"


def wishes(stage: Stage) -> list[Ensure]:
    """What the installer was told to install since the last step."""
    return [one for one in stage.told("installer") if isinstance(one, Ensure)]


def awaited(stage: Stage) -> list[frozenset[str]]:
    """For which backends it was told that requests wait."""
    return [one.backends for one in stage.told("installer") if isinstance(one, InstallsAwaited)]


class TestAnInstallation:
    def wanted(self, requests: int = 1, **more: Any) -> Stage:
        stage = begun(model("gemma", format="safetensors-mlx"), policy="auto", **more)
        for number in range(requests):
            stage.serve(f"r{number}", "gemma")
        return stage

    def token(self, stage: Stage) -> dict[str, str]:
        return {"mlx": stage.volatile.wishes["mlx"].token}

    def test_is_wished_for_once_by_fifty_requests(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"), policy="auto")
        told = 0
        for number in range(50):
            told += len(wishes(stage.serve(f"r{number}", "gemma")))
        assert told == 1

    def test_is_awaited_as_long_as_a_request_waits(self) -> None:
        stage = self.wanted()
        assert awaited(stage) == [frozenset({"mlx"})]
        stage.hear_installer(absent("mlx", job="mlx.1"), heard=self.token(stage))
        assert awaited(stage) == [], "once is enough"
        stage.pass_time(6)
        assert awaited(stage) == [frozenset({"mlx"})], "unless the installer has been built anew"
        stage.when(Abandon(request_id="r0")).rest()
        assert awaited(stage) == [frozenset()]
        stage.pass_time(60)
        assert awaited(stage) == []

    def test_that_somebody_else_began_is_awaited_too(self) -> None:
        stage = begun(model("gemma", format="safetensors-mlx"), policy="auto")
        stage.hear_installer(absent("mlx", job="mlx.1"))
        stage.serve("r0", "gemma")
        assert not wishes(stage)
        assert awaited(stage) == [frozenset({"mlx"})]
        stage.hear_installer(installed("mlx"))
        assert awaited(stage) == [frozenset()]

    def test_that_fails_tells_everybody_who_waited_why(self) -> None:
        stage = self.wanted(3)
        stage.hear_installer(absent("mlx", job="mlx.1"), heard=self.token(stage))
        stage.hear_installer(absent("mlx", failure=NO_SPACE))
        for number in range(3):
            refusal = stage.refused(f"r{number}")
            assert (refusal.code, refusal.kind) == ("no_space", "exhausted")
            assert refusal.message == "mlx could not be installed: There is no room on the disk."
        assert len(stage.stored(LoadRefused)) == 1
        assert not wishes(stage)

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
        (ensure,) = wishes(stage)
        assert ensure.token == "again"

    def test_that_keeps_failing_is_not_tried_on_every_poll(self) -> None:
        stage = self.wanted()
        wishes = 0
        for number in range(1, 500):
            if "mlx" in stage.volatile.wishes:
                wishes += 1
                stage.hear_installer(absent("mlx", failure=NO_SPACE), heard=self.token(stage))
            stage.pass_time(1).serve(f"r{number}", "gemma")
        assert wishes < 12
        refusal = stage.refused("r498")
        assert "It is tried again in" in refusal.message
        assert refusal.retry_after > 0
        assert len(stage.stored(LoadRefused)) == 1

    def test_wish_that_is_not_heard_is_repeated_with_the_same_token(self) -> None:
        stage = self.wanted()
        stage.pass_time(6)
        (again,) = wishes(stage)
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


class TestARetiringInstallation:
    def retiring(self) -> BackendStatus:
        one = installation("llama.cpp")
        return BackendStatus(name="llama.cpp", state="retiring", installations=(one,), retiring=(one.id,))

    def test_has_its_engines_ended_and_starts_nothing_new(self) -> None:
        stage = begun(QWEN)
        stage.loaded("qwen")
        stage.hear_installer(self.retiring())
        (evicted,) = stage.stored(EvictionDecided)
        assert evicted.reason == "retiring"
        stage.serve("r1", "qwen")
        assert stage.refused("r1").code == "backend_not_installed"

    def test_lets_requests_inside_come_to_their_end(self) -> None:
        stage = begun(QWEN)
        stage.loaded("qwen")
        stage.serve("busy", "qwen").hear_installer(self.retiring()).pass_time(60)
        assert not stage.sent(StopEngine)
        stage.leave("busy")
        assert stage.sent(StopEngine)

    def test_does_not_wait_longer_than_the_drain_for_them(self) -> None:
        stage = begun(QWEN, limits=Limits(drain=60))
        stage.loaded("qwen")
        stage.serve("busy", "qwen").hear_installer(self.retiring()).pass_time(60)
        stops = stage.sent(StopEngine)
        assert [one.reason for one in stops] == ["its requests did not end in time"]

    def test_is_acknowledged_to_the_runner_behind_everything_that_was_sent_to_it(self) -> None:
        stage = begun(QWEN).serve("r1", "qwen")
        spec = stage.spec_of("qwen")
        stage.hear_installer(self.retiring())
        # The start is on its way; until the runner has told of it nothing is acknowledged.
        assert not stage.sent(RollCall)[1:]
        stage.engine_is(spec, "starting")
        rolls = stage.sent(RollCall)[1:]
        assert [one.installations for one in rolls] == [stage.volatile.statuses_version]

    def test_is_acknowledged_again_in_case_the_runner_was_rebuilt(self) -> None:
        stage = begun(QWEN)
        stage.hear_installer(self.retiring())
        assert stage.told("runner/llama.cpp")
        assert not stage.pass_time(4).told("runner/llama.cpp")
        assert stage.pass_time(1).told("runner/llama.cpp")
