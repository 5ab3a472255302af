"""Why a model is loaded, where, and what it waits for: scripted histories with exact numbers."""

from __future__ import annotations

from typing import Any

import pytest

from explained import GB, commands, types
from greenroom.actors.engine_runner.events import EngineAdopted
from greenroom.actors.values import LayersOn


def test_why_says_when_a_model_was_placed_again(script: Any) -> None:
    few, all_of_them = ((LayersOn(device="GPU-1", layers=count),) for count in (20, 40))
    script.evict(script.load(layers=40, placement=few), "idle")
    script.load(layers=40, placement=all_of_them)
    told = "40 of its 40 layers are on devices since it was loaded again; before, 20 were."
    assert told in script.why("smollm2").also
    script.load(layers=40, placement=all_of_them)
    assert told not in script.why("smollm2").also


def test_why_says_that_an_engine_was_adopted_from_a_killed_daemon(script: Any) -> None:
    engine = script.load()
    script.wait(10.0)
    script.daemon(pid=101)
    script.add(EngineAdopted(engine_id=engine, pid=4711, started=1.0, endpoint="/tmp/x.sock"))
    script.wait(5.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("loaded", "adopted")
    assert f"engine {engine} has served it on llama.cpp since 12:00:07 (15s ago)" in found.answer
    assert "the next daemon re-adopted it at 12:00:17" in found.answer
    assert found.numbers["load_seconds"] == 0.8
    assert types(found)[-2:] == ["daemon_started", "engine_adopted"]
    assert script.why(engine).cause == "adopted"


@pytest.mark.parametrize(
    ("request_id", "cause", "because"),
    [
        ("warm-0a1b2c3d4e5f", "warm", "because smollm2 is preloaded, as configured."),
        (
            "moved-0a1b2c3d4e5f",
            "moved",
            "because smollm2 was loaded again once it was idle, since devices had room for more of it.",
        ),
        ("restore-0a1b2c3d4e5f", "restored", "because smollm2 was loaded when the previous daemon ended."),
        ("r-0a1b2c3d-4", "asked_for", "because request r-0a1b2c3d-4 needed smollm2."),
    ],
)
def test_why_says_for_whom_a_model_is_loaded(script: Any, request_id: str, cause: str, because: str) -> None:
    engine = script.load(request=request_id)

    for name in ("smollm2", engine):
        assert script.why(name).cause == cause
        assert because in script.why(name).answer


def test_why_says_why_a_model_runs_on_one_backend_and_not_on_another(script: Any) -> None:
    script.model("qwen3", kind="safetensors")
    mlx = script.install("mlx", "0.32", wanted_by="explicit")
    reasons = (
        "mlx reads safetensors and is installed",
        "vllm is preferred but not installed (run: greenroom install-runner --backend vllm)",
        "not vllm-metal: vllm-metal needs macOS",
    )
    script.load("qwen3", backend="mlx", installation=mlx, reasons=reasons, preferred="vllm")

    found = script.why("qwen3")
    preferred = script.why("vllm", backends={"vllm": ""})

    assert (found.state, found.cause) == ("loaded", "asked_for")
    assert found.also == (f"Why mlx: {'; '.join(reasons)}.",)
    assert commands(found)[0] == "greenroom install-runner --backend vllm"
    assert (preferred.state, preferred.cause) == ("absent", "never_asked")
    assert "qwen3 was loaded on another backend instead." in preferred.also


def test_why_says_that_a_load_takes_much_longer_than_earlier_ones(script: Any) -> None:
    for _ in range(3):
        script.evict(script.load(seconds=2.0), "idle")
    engine = script.admit(memory=GB, reserved=GB, budget=8 * GB)
    script.spawn(engine)
    script.wait(19.9)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("loading", "slow")
    assert found.numbers["elapsed"] == 20.0
    assert found.numbers["usual_seconds"] == 2.0
    assert found.numbers["promised"] == GB
    assert "3 earlier loads on this installation took 2s (median)." in found.answer
    assert "This one has taken 10 times as long so far." in found.answer
    assert commands(found)[0] == f"greenroom logs -f {engine}"


def test_a_first_load_has_nothing_to_be_compared_with(script: Any) -> None:
    script.admit()
    script.wait(3.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("loading", "loading")
    assert found.numbers["elapsed"] == 3.0
    assert "its engine is starting. It is the first load on this installation" in found.answer


def test_why_explains_a_model_that_is_loaded_in_two_modes(script: Any) -> None:
    first = script.load()
    second = script.load(mode="embedding")

    found = script.why("smollm2")

    assert second in found.answer
    assert f"It is also loaded in completion mode, as engine {first}." in found.also


def test_a_cold_load_that_had_to_install_its_backend_tells_that_first(script: Any) -> None:
    script.model("qwen3", kind="safetensors-mlx")
    request = script.request()
    mlx = script.install("mlx", "0.32", cause=request, wanted_by="request")
    script.load("qwen3", backend="mlx", installation=mlx, request=request)

    found = script.why("qwen3")
    asked = script.why(request)

    assert types(found)[:2] == ["install_requested", "installation_committed"]
    assert (asked.state, asked.cause) == ("served", "loaded")
    assert (
        "It made Greenroom install mlx, which succeeded. It made Greenroom load qwen3 on mlx" in asked.answer
    )
    assert script.why("mlx").cause == "request"


def test_an_engine_of_one_mode_that_died_is_reported_although_another_mode_is_loaded(script: Any) -> None:
    chatting = script.load()
    embedding = script.load(mode="embedding")
    script.die(chatting, "It was killed by SIGKILL.", was_ready=True)

    found = script.why("smollm2")

    assert f"engine {embedding} has served it on llama.cpp in embedding mode since" in found.answer
    told = [
        one for one in found.also if one.startswith("In completion mode it is not loaded: its engine crashed")
    ]
    assert len(told) == 1
    assert "It was killed by SIGKILL." in told[0]

    script.load()
    assert not [one for one in script.why("smollm2").also if "not loaded" in one]
