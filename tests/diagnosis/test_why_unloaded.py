"""Why a model is not loaded, or not in the store: scripted histories with the exact causes and numbers."""

from __future__ import annotations

from typing import Any

from explained import GB, SMOLLM2, commands, types
from greenroom.actors.installer.events import InstallationRemoved, InstallationRetiring
from greenroom.actors.library.events import (
    ModelCommitted,
    ModelRemoved,
    ModelTagged,
    PullAttemptFailed,
    PullCancelled,
    PullFailed,
    PullRequested,
)
from greenroom.actors.scheduler.events import ConfigChanged
from greenroom.actors.values import Failure, Model

# unloaded


def test_why_says_that_a_model_was_evicted_for_another(script: Any) -> None:
    script.model("gemma3")
    smollm2 = script.load(memory=2 * GB)
    script.wait(720.0)
    request = script.request()
    script.evict(
        smollm2,
        "room",
        cause=request,
        in_favour_of="docker.io/ai/gemma3:latest",
        needed=5 * GB,
        free=4 * GB,
        idle_seconds=720.0,
    )
    script.load("gemma3", request=request, memory=5 * GB, reserved=5 * GB, budget=6 * GB, seconds=3.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("unloaded", "room")
    assert found.numbers == {
        "memory": 2.0 * GB,
        "idle_seconds": 720.0,
        "needed": 5.0 * GB,
        "free": 4.0 * GB,
    }
    assert found.answer == (
        "smollm2 is not loaded: it was evicted at 12:12:09 (3s ago) to make room for gemma3, which request "
        "r-0a1b2c3d-2 asked for and which needed 5.00 GB when 4.00 GB was free. It held 2.00 GB and had been "
        "idle for 12m."
    )
    assert "gemma3 holds 5.00 GB now." in found.also
    assert types(found)[-5:] == [
        "eviction_decided",
        "engine_stop_requested",
        "engine_exited",
        "load_admitted",
        "engine_ready",
    ]
    assert commands(found) == [
        "greenroom run smollm2",
        "greenroom stop && GREENROOM_MEMORY_BUDGET=7GB greenroom serve",
    ]


def test_why_says_that_the_budget_would_have_had_room(script: Any) -> None:
    script.model("gemma3")
    smollm2 = script.load(memory=2 * GB)
    request = script.request()
    script.evict(
        smollm2, "room", cause=request, in_favour_of="docker.io/ai/gemma3:latest", needed=5 * GB, free=4 * GB
    )
    script.load("gemma3", request=request, memory=5 * GB, reserved=5 * GB, budget=64 * GB)

    found = script.why("smollm2")

    assert (
        "The memory budget had room for both, but other programs were using the machine's memory."
        in found.also
    )
    assert commands(found) == ["greenroom run smollm2"]


def test_the_model_the_room_was_made_for_tells_who_made_it(script: Any) -> None:
    script.model("gemma3")
    smollm2 = script.load(memory=2 * GB)
    request = script.request()
    script.evict(
        smollm2, "room", cause=request, in_favour_of="docker.io/ai/gemma3:latest", needed=5 * GB, free=4 * GB
    )
    script.load("gemma3", request=request, memory=5 * GB, reserved=5 * GB, budget=6 * GB)

    found = script.why("gemma3")

    assert (found.state, found.cause) == ("loaded", "asked_for")
    assert found.numbers["promised"] == 5 * GB
    assert found.numbers["budget"] == 6 * GB
    told = [step.text for step in found.steps]
    assert any("Evicting smollm2 from llama.cpp" in text for text in told)
    assert types(found).index("engine_exited") < types(found).index("load_admitted")


def test_a_model_unused_for_its_keep_alive_is_explained(script: Any) -> None:
    engine = script.load()
    script.evict(engine, "idle", idle_seconds=300.2)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("unloaded", "idle")
    assert found.numbers == {"memory": 444e6, "idle_seconds": 300.2}
    assert "after being idle for 5m, which is its keep-alive." in found.answer
    assert commands(found) == ["greenroom run smollm2", "greenroom stop && greenroom serve --keep-alive 30m"]


def test_a_model_unloaded_by_a_client_is_explained(script: Any) -> None:
    engine = script.load()
    script.evict(engine, "unload", cause="r-0a1b2c3d-7", idle_seconds=12.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("unloaded", "unload")
    assert "it was unloaded at 12:00:07 (just now) by request r-0a1b2c3d-7." in found.answer
    assert found.numbers["idle_seconds"] == 12.0


def test_why_says_that_a_model_was_unloaded_to_be_configured_differently(script: Any) -> None:
    engine = script.load()
    request = script.request()
    script.add(
        ConfigChanged(
            model_id=SMOLLM2,
            model_ref="docker.io/ai/smollm2:latest",
            mode="completion",
            context_size=8192,
        ),
        cause=request,
    )
    script.evict(engine, "reconfigured", cause=request)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("unloaded", "reconfigured")
    assert found.numbers["context_size"] == 8192
    assert "request r-0a1b2c3d-2 configured a context of 8192 tokens for its next load." in found.answer


def test_why_says_that_a_model_ended_with_its_daemon(script: Any) -> None:
    engine = script.load()
    script.evict(engine, "shutdown")
    script.stopped()
    script.wait(60.0)
    script.daemon(pid=101)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("unloaded", "shutdown")
    assert "Greenroom stopped at 12:00:07" in found.answer
    assert (
        found.also[0] == "Greenroom has been running again since 12:01:08, without a request for the model."
    )
    assert types(found)[-2:] == ["daemon_stopped", "daemon_started"]


def test_why_says_that_the_backend_of_a_model_was_uninstalled(script: Any) -> None:
    script.model("qwen3", kind="safetensors-mlx")
    mlx = script.install("mlx", "0.32", wanted_by="explicit")
    engine = script.load("qwen3", backend="mlx", installation=mlx, reasons=("mlx reads it",))
    retiring = script.add(
        InstallationRetiring(
            backend="mlx", installation_id=mlx, reason="uninstalled by the user", unwanted=True
        )
    )
    script.evict(engine, "retiring", cause=retiring)
    script.add(InstallationRemoved(backend="mlx", installation_id=mlx, freed=297_000_000))

    found = script.why("qwen3")
    backend = script.why("mlx")

    assert (found.state, found.cause) == ("unloaded", "retiring")
    assert "the installation of mlx it ran on was being removed: uninstalled by the user." in found.answer
    assert "mlx is not installed now." in found.also
    assert "installation_retiring" in types(found)
    assert types(found)[-1] == "installation_removed"
    assert commands(found)[0] == "greenroom install-runner --backend mlx"
    assert (backend.state, backend.cause) == ("absent", "uninstalled")
    assert backend.numbers == {"freed": 297e6}
    assert "That freed 297 MB. It stays uninstalled until it is requested." in backend.answer


# not in the store, never requested


def test_a_model_that_was_never_requested_is_explained(script: Any) -> None:
    found = script.why("smollm2")

    assert (found.state, found.cause) == ("unloaded", "never_asked")
    assert found.numbers == {"size": 98e6}
    assert (
        "it has been in the store since 12:00:07 (just now) (98.0 MB, gguf, Q4_1), but was never requested."
        in (found.answer)
    )
    assert found.also == ("llama.cpp can serve it and is installed.",)
    assert commands(found) == ["greenroom run smollm2"]


def test_why_says_how_a_pull_failed(script: Any) -> None:
    asked = script.add(PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"))
    script.add(
        PullAttemptFailed(
            job="pull.9",
            attempt=1,
            failure=Failure(kind="transient", code="unreachable", message="The registry did not answer."),
            retry_at=script.now + 2,
        ),
        cause=asked,
        after=1.0,
    )
    script.add(
        PullFailed(
            job="pull.9",
            failure=Failure(
                kind="permanent",
                code="no_space",
                message="It needs 5.00 GB, and 1.00 GB is free.",
                advice="Make room: greenroom rm MODEL.",
            ),
        ),
        cause=asked,
        after=2.0,
    )

    found = script.why("gemma3")

    assert (found.state, found.cause) == ("not_here", "no_space")
    assert found.numbers == {"attempts": 2.0}
    assert "It needs 5.00 GB, and 1.00 GB is free. Make room: greenroom rm MODEL." in found.answer
    assert types(found) == ["pull_requested", "pull_attempt_failed", "pull_failed"]
    assert commands(found) == ["greenroom pull gemma3", "greenroom df"]


def test_why_says_what_a_pull_waits_for(script: Any) -> None:
    asked = script.add(PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"))
    script.add(
        PullAttemptFailed(
            job="pull.9",
            attempt=1,
            failure=Failure(kind="transient", code="unreachable", message="The registry did not answer."),
            retry_at=script.now + 31.0,
        ),
        cause=asked,
        after=1.0,
    )

    found = script.why("gemma3")

    assert (found.state, found.cause) == ("waiting_to_retry", "unreachable")
    assert found.numbers == {"attempts": 1.0, "retry_at": script.now + 30.0}
    assert "one attempt to pull it has failed; retrying at 12:00:38 (in 30s)." in found.answer


def test_why_explains_running_and_finished_pulls(script: Any) -> None:
    script.add(PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"))
    script.wait(4.0)
    assert (script.why("gemma3").state, script.why("gemma3").numbers) == ("pulling", {"elapsed": 4.0})

    script.add(PullCancelled(job="pull.9", reason="requested by the user"))
    assert (script.why("gemma3").state, script.why("gemma3").cause) == ("not_here", "cancelled")


def test_why_says_that_a_model_was_removed(script: Any) -> None:
    script.load()
    script.add(ModelRemoved(model_id=SMOLLM2, reason="requested by the user", freed=98_000_000))

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("not_here", "removed")
    assert found.numbers == {"freed": 98e6}
    assert types(found)[-1] == "model_removed"


def test_a_model_that_was_removed_goes_by_the_name_it_had_then_and_not_by_one_given_up_before(
    script: Any,
) -> None:
    kept, given_up = "docker.io/ai/mine:latest", "docker.io/ai/second:latest"
    asked = script.add(PullRequested(job="pull.7", reference=kept))
    model = Model(id="sha256:" + "7" * 64, tags=(kept,), format="gguf", size=192)
    script.add(ModelCommitted(job="pull.7", model=model), cause=asked)
    script.add(ModelTagged(model_id=model.id, tags=(kept, given_up)))
    script.add(ModelTagged(model_id=model.id, tags=(kept,)))
    script.add(ModelRemoved(model_id=model.id, reason="requested by the user", freed=192))

    assert script.why("mine").answer.startswith("mine was in the store until ")


def test_a_model_that_was_removed_is_fetched_again_by_what_it_was_fetched_as(script: Any) -> None:
    reference = "file:/models/mine.gguf"
    asked = script.add(PullRequested(job="pull.7", reference=reference))
    model = Model(id="sha256:" + "7" * 64, tags=(reference,), format="gguf", size=192)
    script.add(ModelCommitted(job="pull.7", model=model), cause=asked)
    script.add(ModelTagged(model_id=model.id, tags=(reference, "docker.io/ai/mine:latest")))
    script.add(ModelTagged(model_id=model.id, tags=(reference,)))
    script.add(ModelRemoved(model_id=model.id, reason="requested by the user", freed=192))

    found = script.why("mine")

    assert found.cause == "removed"
    assert [one.command for one in found.remedies] == [f"greenroom pull {reference}"]
