"""Which backend a load goes to, the installation it waits for, and the one that is to go."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from greenroom.actors.engine_runner.messages import StopEngine
from greenroom.actors.installer.messages import BackendStatus, Ensure, PendingInstallRequests
from greenroom.actors.scheduler.events import BackendChosen, EvictionDecided, LoadRefused
from greenroom.actors.scheduler.messages import Abandon
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.values import RequestSnapshot, VariantFacts
from scheduler_stage import FACTS, NO_SPACE, OFFLINE, Stage, absent, begun, installation, installed, model

QWEN = model("qwen")


def test_a_refusal_for_want_of_the_only_possible_backend_says_how_to_install_it() -> None:
    stage = begun(model("gemma", format="safetensors-mlx"))
    stage.serve("r1", "gemma")
    refusal = stage.refused("r1")
    assert refusal.kind == "not_ready"
    assert refusal.message == ('backend "mlx" is not installed; run: greenroom install-runner --backend mlx')
    assert refusal.numbers == {"download_bytes": 350_000_000.0}
    assert not wishes(stage)


def test_a_refusal_for_want_of_a_backend_names_the_others_that_could_serve() -> None:
    stage = begun(model("gemma", format="safetensors"))
    stage.serve("r1", "gemma")
    advice = "(or, with vllm: greenroom install-runner --backend vllm)"
    assert stage.refused("r1").advice == advice
    (refused,) = stage.stored(LoadRefused)
    assert refused.advice == advice


def test_a_request_installs_the_backend_under_auto() -> None:
    stage = begun(model("gemma", format="safetensors-mlx"), policy="auto")
    stage.serve("r1", "gemma").then()
    (ensure,) = wishes(stage)
    assert (ensure.backend, ensure.wanted_by) == ("mlx", "request")
    assert stage.informed["r1"].follows == "install/mlx"
    stage.hear_installer(absent("mlx", job="mlx.1"))
    stage.hear_installer(installed("mlx"))
    assert stage.spec_of("gemma").backend == "mlx"


def test_a_request_never_installs_a_backend_under_never() -> None:
    stage = Stage(policy="never").begin(QWEN, installed_ones=())
    stage.serve("r1", "qwen")
    assert stage.refused("r1").kind == "not_ready"
    assert not wishes(stage)


def test_a_request_may_bring_a_policy_of_its_own() -> None:
    stage = begun(model("gemma", format="safetensors-mlx"), policy="auto")
    stage.serve("r1", "gemma", policy="ask")
    assert stage.refused("r1").code == "backend_not_installed"


@pytest.mark.parametrize(("best_first", "variant"), [(True, "best"), (False, "")])
def test_what_a_request_installs_is_the_best_variant_where_the_backend_says_so(
    best_first: bool, variant: str
) -> None:
    facts = [
        msgspec.structs.replace(one, best_first=best_first) if one.name == "mlx" else one for one in FACTS
    ]
    stage = begun(model("gemma", format="safetensors-mlx"), policy="auto", facts=facts)
    stage.serve("r1", "gemma")
    (wish,) = wishes(stage)
    assert (wish.backend, wish.variant, wish.wanted_by) == ("mlx", variant, "request")


@pytest.mark.parametrize(("variant", "slots"), [("", 8), ("cuda", 64)])
def test_an_engine_has_as_many_slots_as_its_variant_takes(variant: str, slots: int) -> None:
    variants = (VariantFacts(name="cpu", slots=8), VariantFacts(name="cuda", runtime="cuda", slots=64))
    facts = [
        msgspec.structs.replace(one, slots=8, variants=variants, usual="cpu", shares_cache=True)
        if one.name == "vllm"
        else one
        for one in FACTS
    ]
    stage = begun(model("gemma", format="safetensors"), facts=facts)
    one = installation("vllm", variant=variant)
    stage.hear_installer(msgspec.structs.replace(installed("vllm"), current=one, installations=(one,)))
    assert stage.loaded("gemma").slots == slots


def test_the_backend_that_the_path_names_is_binding() -> None:
    stage = begun(model("gemma", format="safetensors"), installed_ones=("mlx",))
    stage.serve("r1", "gemma", backend="vllm")
    refusal = stage.refused("r1")
    assert (refusal.kind, refusal.subject) == ("not_ready", "vllm")
    assert not stage.loads


def test_the_backend_that_the_path_names_does_not_use_another_backends_engine() -> None:
    stage = begun(model("gemma", format="safetensors"), installed_ones=("mlx",))
    stage.loaded("gemma")
    stage.serve("r1", "gemma", backend="vllm")
    assert stage.refused("r1").code == "backend_not_installed"


def test_a_preferred_backend_that_is_absent_never_blocks() -> None:
    stage = begun(model("gemma", format="safetensors"), installed_ones=("mlx",))
    stage.serve("r1", "gemma")
    assert stage.spec_of("gemma").backend == "mlx"
    (chosen,) = stage.stored(BackendChosen)
    advice = "vllm is preferred but not installed (run: greenroom install-runner --backend vllm)"
    assert advice in chosen.reasons


def test_the_default_backend_is_waited_for_while_it_is_installed() -> None:
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
    return [one.backends for one in stage.told("installer") if isinstance(one, PendingInstallRequests)]


def wanted(requests: int = 1, **more: Any) -> Stage:
    stage = begun(model("gemma", format="safetensors-mlx"), policy="auto", **more)
    for number in range(requests):
        stage.serve(f"r{number}", "gemma")
    return stage


def token(stage: Stage) -> dict[str, str]:
    return {"mlx": stage.volatile.wishes["mlx"].token}


def test_an_installation_is_requested_once_by_fifty_requests() -> None:
    stage = begun(model("gemma", format="safetensors-mlx"), policy="auto")
    told = 0
    for number in range(50):
        told += len(wishes(stage.serve(f"r{number}", "gemma")))
    assert told == 1


def test_an_installation_is_awaited_as_long_as_a_request_waits() -> None:
    stage = wanted()
    assert awaited(stage) == [frozenset({"mlx"})]
    stage.hear_installer(absent("mlx", job="mlx.1"), heard=token(stage))
    assert awaited(stage) == [], "once is enough"
    stage.pass_time(6)
    assert awaited(stage) == [frozenset({"mlx"})], "unless the installer was rebuilt"
    stage.when(Abandon(request_id="r0")).rest()
    assert awaited(stage) == [frozenset()]
    stage.pass_time(60)
    assert awaited(stage) == []


def test_an_installation_that_another_caller_began_is_awaited_too() -> None:
    stage = begun(model("gemma", format="safetensors-mlx"), policy="auto")
    stage.hear_installer(absent("mlx", job="mlx.1"))
    stage.serve("r0", "gemma")
    assert not wishes(stage)
    assert awaited(stage) == [frozenset({"mlx"})]
    stage.hear_installer(installed("mlx"))
    assert awaited(stage) == [frozenset()]


def test_an_installation_that_fails_tells_every_waiting_request_why() -> None:
    stage = wanted(3)
    stage.hear_installer(absent("mlx", job="mlx.1"), heard=token(stage))
    stage.hear_installer(absent("mlx", failure=NO_SPACE))
    for number in range(3):
        refusal = stage.refused(f"r{number}")
        assert (refusal.code, refusal.kind) == ("no_space", "exhausted")
        assert refusal.message == "mlx could not be installed: There is no room on the disk."
    assert len(stage.stored(LoadRefused)) == 1
    assert not wishes(stage)


def test_an_installation_that_failed_between_two_lists_is_noticed() -> None:
    stage = wanted()
    stage.hear_installer(absent("mlx", failure=NO_SPACE), heard=token(stage))
    assert stage.refused("r0").code == "no_space"


def test_an_installation_that_was_requested_is_not_refused_by_a_list_older_than_the_request() -> None:
    stage = wanted()
    stage.hear_installer(absent("mlx", failure=OFFLINE))
    assert "r0" not in stage.outcomes


def test_an_installation_may_be_tried_again_by_the_next_request() -> None:
    stage = wanted()
    stage.hear_installer(absent("mlx", failure=OFFLINE), heard=token(stage))
    stage.serve("again", "gemma")
    (ensure,) = wishes(stage)
    assert ensure.token == "again"


def test_an_installation_that_keeps_failing_is_not_tried_on_every_poll() -> None:
    stage = wanted()
    wishes = 0
    for number in range(1, 500):
        if "mlx" in stage.volatile.wishes:
            wishes += 1
            stage.hear_installer(absent("mlx", failure=NO_SPACE), heard=token(stage))
        stage.pass_time(1).serve(f"r{number}", "gemma")
    assert wishes < 12
    refusal = stage.refused("r498")
    assert "It will be retried in" in refusal.message
    assert refusal.retry_after > 0
    assert len(stage.stored(LoadRefused)) == 1


def test_an_install_request_that_is_lost_is_repeated_with_the_same_token() -> None:
    stage = wanted()
    stage.pass_time(6)
    (again,) = wishes(stage)
    assert again.token == "r0"


def test_an_install_request_that_never_arrives_is_refused_by_time() -> None:
    stage = wanted(limits=Limits(max_wait=60))
    for _ in range(13):
        stage.pass_time(5)
    assert stage.refused("r0").code == "not_ready_yet"
    assert "still installing mlx" in stage.refused("r0").message


def test_an_installation_that_is_cancelled_answers_those_who_wait() -> None:
    stage = wanted()
    stage.hear_installer(absent("mlx", job="mlx.1"))
    stage.hear_installer(absent("mlx"))
    assert stage.refused("r0").message == "mlx was not installed."


def test_another_job_of_the_same_backend_is_waited_for_as_well() -> None:
    stage = wanted()
    stage.hear_installer(absent("mlx", job="mlx.1"))
    stage.hear_installer(absent("mlx", job="mlx.2"))
    assert "r0" not in stage.outcomes
    stage.hear_installer(installed("mlx"))
    assert stage.loads


def retiring() -> BackendStatus:
    one = installation("llama.cpp")
    return BackendStatus(name="llama.cpp", state="retiring", installations=(one,), retiring=(one.id,))


def test_a_retiring_installation_has_its_engines_ended_and_starts_nothing_new() -> None:
    stage = begun(QWEN)
    stage.loaded("qwen")
    stage.hear_installer(retiring())
    (evicted,) = stage.stored(EvictionDecided)
    assert evicted.reason == "retiring"
    stage.serve("r1", "qwen")
    assert stage.refused("r1").code == "backend_not_installed"


def test_a_retiring_installation_lets_requests_inside_come_to_their_end() -> None:
    stage = begun(QWEN)
    stage.loaded("qwen")
    stage.serve("busy", "qwen").hear_installer(retiring()).pass_time(60)
    assert not stage.sent(StopEngine)
    stage.leave("busy")
    assert stage.sent(StopEngine)


def test_a_retiring_installation_does_not_wait_longer_than_the_drain_for_them() -> None:
    stage = begun(QWEN, limits=Limits(drain=60))
    stage.loaded("qwen")
    stage.serve("busy", "qwen").hear_installer(retiring()).pass_time(60)
    stops = stage.sent(StopEngine)
    assert [one.reason for one in stops] == ["its requests did not finish in time"]


def test_a_retiring_installation_is_acknowledged_to_the_runner_behind_everything_that_was_sent_to_it() -> (
    None
):
    stage = begun(QWEN).serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    stage.hear_installer(retiring())
    # The start is on its way; until the runner has told of it nothing is acknowledged.
    assert not stage.sent(RequestSnapshot)[1:]
    stage.engine_is(spec, "starting")
    rolls = stage.sent(RequestSnapshot)[1:]
    assert [one.installations for one in rolls] == [stage.volatile.statuses_version]


def test_a_retiring_installation_is_acknowledged_again_in_case_the_runner_was_rebuilt() -> None:
    stage = begun(QWEN)
    stage.hear_installer(retiring())
    assert stage.told("runner/llama.cpp")
    assert not stage.pass_time(4).told("runner/llama.cpp")
    assert stage.pass_time(1).told("runner/llama.cpp")
