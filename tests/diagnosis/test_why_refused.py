"""Why a request was refused: scripted histories, each with the exact cause and numbers."""

from __future__ import annotations

from typing import Any

from explained import GB, commands, types
from greenroom.actors.scheduler.events import KeepAliveWished


def test_why_says_that_a_model_does_not_fit(script: Any) -> None:
    numbers = {"needed": 20 * 2.0**30, "budget": 8 * 2.0**30, "promised": 0.0}
    script.refuse(
        "smollm2",
        "does_not_fit",
        "smollm2 needs 21.5 GB of memory; engines may use 8.59 GB in total.",
        **numbers,
    )

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("refused", "does_not_fit")
    assert found.numbers == numbers
    assert "smollm2 needs 21.5 GB of memory; engines may use 8.59 GB in total." in found.answer
    assert commands(found) == ["greenroom stop && GREENROOM_MEMORY_BUDGET=22GB greenroom serve"]


def test_why_says_that_pinned_models_leave_no_room_for_a_model(script: Any) -> None:
    gemma3 = script.model("gemma3")
    pinned = script.load("gemma3", memory=6 * GB)
    wish = KeepAliveWished(
        engine_id=pinned, model_id=gemma3, model_ref="docker.io/ai/gemma3:latest", keep_alive=-1.0
    )
    script.add(wish, cause="r-0a1b2c3d-1")
    message = (
        "smollm2 needs 3.0 GiB of memory; of the 8.0 GiB that engines may use, pinned models hold 6.0 GiB."
    )
    script.refuse("smollm2", "no_room", message, needed=3.0, budget=8.0, pinned=6.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("refused", "no_room")
    assert found.numbers == {"needed": 3.0, "budget": 8.0, "pinned": 6.0}
    assert found.also == ("gemma3 holds 6.00 GB and is pinned: request r-0a1b2c3d-1 asked for it.",)
    assert commands(found)[0] == "greenroom ps"
    assert "It is pinned: request r-0a1b2c3d-1 asked for it." in script.why("gemma3").also


ABSENT = 'backend "mlx" is not installed; run: greenroom install-runner --backend mlx'


def test_why_names_all_absent_backends_that_could_serve_a_model(script: Any) -> None:
    script.model("qwen3", kind="safetensors")
    advice = "(or, with vllm: greenroom install-runner --backend vllm)"
    script.refuse("qwen3", "backend_not_installed", ABSENT, advice=advice)

    assert commands(script.why("qwen3")) == [
        "greenroom install-runner --backend mlx",
        "greenroom install-runner --backend vllm",
        "greenroom run qwen3",
    ]


def test_why_says_that_the_only_backend_is_absent_under_ask(script: Any) -> None:
    script.model("qwen3", kind="safetensors-mlx")
    request = script.request()
    script.refuse("qwen3", "backend_not_installed", ABSENT, request=request, download_bytes=61e6)

    found = script.why("qwen3")
    backend = script.why("mlx", backends={"mlx": ""})
    asked = script.why(request)

    assert (found.state, found.cause) == ("refused", "backend_not_installed")
    assert found.numbers == {"download_bytes": 61e6}
    assert commands(found) == ["greenroom install-runner --backend mlx", "greenroom run qwen3"]
    assert (backend.state, backend.cause) == ("absent", "never_asked")
    assert backend.also == ("Requests for qwen3 were refused because it is not installed.",)
    assert types(backend) == ["load_refused"]
    assert (asked.state, asked.cause) == ("refused", "backend_not_installed")


def test_once_the_backend_is_there_it_says_that_the_next_request_is_served(script: Any) -> None:
    script.model("qwen3", kind="safetensors-mlx")
    script.refuse("qwen3", "backend_not_installed", ABSENT)
    script.install("mlx", "0.32", wanted_by="explicit")

    found = script.why("qwen3")

    assert found.cause == "backend_not_installed"
    assert found.answer.startswith("qwen3 is not loaded: mlx 0.32 has been installed since 12:00:")
    assert "so the next request works. Before that, requests for it were refused:" in found.answer
    assert commands(found) == ["greenroom run qwen3"]
    assert types(found)[-1] == "installation_committed"


def test_why_says_that_a_backend_is_for_another_platform(script: Any) -> None:
    verdict = "vllm-metal needs macOS 15 or newer on Apple silicon"

    found = script.why("vllm-metal", backends={"vllm-metal": verdict})

    assert (found.state, found.cause) == ("absent", "unsupported_platform")
    assert verdict in found.answer
