"""Which backend serves a model, and why not another."""

from __future__ import annotations

from typing import Any

import msgspec

from greenroom.actors.installer.messages import BackendStatus
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.scheduler.backend_choice import Install, Use, choose
from scheduler_stage import FACTS, METAL, absent, installation, installed, model

GGUF, SAFE, QUANTISED = (model("m", format=one) for one in ("gguf", "safetensors", "safetensors-mlx"))


def pick(what: Any, *statuses: BackendStatus, binding: str = "", policy: Any = "ask", **more: Any) -> Any:
    known = {one.name: one for one in statuses}
    return choose(what, more.get("mode", "completion"), binding, policy, FACTS, known)


def refused(*arguments: Any, **more: Any) -> Refusal:
    outcome = pick(*arguments, **more)
    assert isinstance(outcome, Refusal), outcome
    return outcome


def broken(backend: str, **more: Any) -> BackendStatus:
    from greenroom.actors.values import Failure

    one = installation(backend, broken="a file is missing", **more)
    failure = Failure(kind="permanent", code="broken", message="a file is missing")
    return BackendStatus(name=backend, state="broken", installations=(one,), failure=failure)


def test_the_most_preferred_installed_backend_serves() -> None:
    choice = pick(SAFE, installed("mlx"), installed("vllm"))
    assert isinstance(choice, Use)
    assert (choice.backend, choice.installation_id) == ("vllm", "1-aaaa.1")
    assert choice.reasons == (
        "it reads safetensors and is installed",
        "it is preferred to mlx",
        "vllm-metal needs macOS 15 or newer on Apple silicon",
    )


def test_a_better_backend_that_is_absent_is_named_with_the_command_that_installs_it() -> None:
    choice = pick(SAFE, installed("mlx"))
    assert choice.backend == "mlx"
    wanted = "vllm is preferred but not installed (run: greenroom install-runner --backend vllm)"
    assert wanted in choice.reasons


def test_a_better_backend_that_is_being_installed_does_not_block() -> None:
    assert pick(SAFE, installed("mlx"), absent("vllm", job="vllm.1")).backend == "mlx"


def test_a_format_that_one_backend_can_read_goes_to_that_backend() -> None:
    assert pick(QUANTISED, installed("mlx"), installed("vllm")).backend == "mlx"


def test_a_backend_that_the_path_names_is_binding() -> None:
    choice = pick(SAFE, installed("mlx"), installed("vllm"), binding="mlx")
    assert (choice.backend, choice.reasons) == ("mlx", ("the request names mlx",))
    assert refused(SAFE, installed("mlx"), binding="vllm").code == "backend_not_installed"


def test_an_unknown_backend_is_refused_and_the_known_ones_are_listed() -> None:
    refusal = refused(GGUF, binding="llama")
    assert refusal.kind == "not_found"
    assert refusal.advice == "Known backends: llama.cpp, mlx, vllm, vllm-metal."


def test_a_mode_that_no_backend_serves_is_refused() -> None:
    refusal = refused(GGUF, mode="reranking")
    assert (refusal.kind, refusal.message) == ("invalid", "No backend serves gguf models in reranking mode.")
    assert refusal.advice == ""
    embeds = msgspec.structs.replace(FACTS[0], formats=("safetensors",), modes=("embedding",))
    other = choose(GGUF, "embedding", "", "ask", [embeds], {})
    assert isinstance(other, Refusal)
    assert other.advice == "Use one in another format: safetensors."


def test_a_binding_to_a_backend_that_cannot_read_it_says_which_can() -> None:
    refusal = refused(GGUF, binding="mlx")
    assert refusal.message == "mlx cannot serve gguf models in completion mode; llama.cpp can."


def test_a_backend_this_platform_cannot_run_is_refused_with_its_verdict() -> None:
    refusal = refused(SAFE, binding="vllm-metal")
    assert (refusal.kind, refusal.message) == ("not_ready", METAL.verdict)


def test_a_backend_that_is_being_installed_is_waited_for_under_any_policy() -> None:
    for policy in ("ask", "auto", "never"):
        choice = pick(SAFE, absent("vllm", job="vllm.1"), policy=policy)
        assert choice == Install(backend="vllm", reason="it is already being installed")


def test_the_default_backend_is_installed_without_asking() -> None:
    assert pick(GGUF, absent("llama.cpp", wanted=True)) == Install(
        backend="llama.cpp", reason="it is a default backend"
    )


def test_where_several_could_serve_the_refusal_names_the_others_too() -> None:
    refusal = refused(SAFE)
    assert refusal.message.startswith('backend "mlx" is not installed')
    assert refusal.advice == "(or, with vllm: greenroom install-runner --backend vllm)"
    assert refused(QUANTISED).advice == ""
    assert refused(SAFE, binding="mlx").advice == ""


def test_the_default_backend_is_not_installed_by_a_request_once_the_user_uninstalled_it() -> None:
    assert refused(GGUF, absent("llama.cpp", wanted=False)).kind == "not_ready"


def test_nothing_is_installed_by_a_request_under_never() -> None:
    assert refused(GGUF, absent("llama.cpp", wanted=True), policy="never").kind == "not_ready"
    assert refused(SAFE, policy="never").kind == "not_ready"


def test_a_deferred_backend_is_installed_under_auto_the_easiest_first() -> None:
    assert pick(SAFE, policy="auto") == Install(backend="mlx", reason="the install policy is auto")


def test_an_absent_one_is_refused_under_ask_with_the_sentence_of_the_contract() -> None:
    refusal = refused(SAFE)
    assert refusal.kind == "not_ready"
    assert refusal.message == 'backend "mlx" is not installed; run: greenroom install-runner --backend mlx'
    assert refusal.numbers == {"download_bytes": 350_000_000.0}


def test_a_broken_backend_is_refused_with_the_reason() -> None:
    refusal = refused(QUANTISED, broken("mlx"))
    assert refusal.advice == "(The existing installation is broken: a file is missing)"


def test_beside_the_users_own_broken_one_ours_is_not_installed() -> None:
    refusal = refused(QUANTISED, broken("mlx", managed=False), policy="auto")
    assert refusal.code == "backend_broken"
    assert "a file is missing" in refusal.message


def test_where_the_users_own_is_broken_another_backend_may_be_installed() -> None:
    choice = pick(SAFE, broken("mlx", managed=False), policy="auto")
    assert choice == Install(backend="vllm", reason="the install policy is auto")


def test_the_users_own_that_cannot_be_used_is_named_when_another_serves() -> None:
    import msgspec

    theirs = msgspec.structs.replace(
        installation("mlx", managed=False, broken="it does not start"), id="external"
    )
    serving = installed("mlx")
    both = msgspec.structs.replace(serving, installations=(*serving.installations, theirs))
    choice = pick(QUANTISED, both)
    assert isinstance(choice, Use)
    assert "the mlx configured in config.toml cannot be used: it does not start" in choice.reasons
