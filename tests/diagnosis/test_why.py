"""Scripted histories, after what people report of model runners, each with the exact cause and numbers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from greenroom.actors import events as ev
from greenroom.actors.facts import Failure, Installation, Model
from greenroom.actors.journal.port import JournalDamaged
from greenroom.runner.diagnosis.explain import UnknownName, explain
from greenroom.runner.diagnosis.explanation import Explanation

GB = 10**9
SMOLLM2 = f"sha256:{b'smollm2'.hex():0<64}"


def types(found: Explanation) -> list[str]:
    return [step.type for step in found.steps]


def commands(found: Explanation) -> list[str]:
    return [remedy.command for remedy in found.remedies]


# unloaded


def test_a_model_that_made_room_for_another(script: Any) -> None:
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
    script.load("gemma3", request=request, memory=5 * GB, promised=5 * GB, budget=6 * GB, seconds=3.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("unloaded", "room")
    assert found.numbers == {
        "memory": 2.0 * GB,
        "idle_seconds": 720.0,
        "needed": 5.0 * GB,
        "free": 4.0 * GB,
    }
    assert found.answer == (
        "smollm2 is not loaded: it was unloaded at 12:12:09 (3s ago) to make room for gemma3, which needed "
        "5.00 GB while 4.00 GB were free. It held 2.00 GB and nobody had used it for 12m."
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


def test_room_that_the_budget_would_have_had(script: Any) -> None:
    script.model("gemma3")
    smollm2 = script.load(memory=2 * GB)
    request = script.request()
    script.evict(
        smollm2, "room", cause=request, in_favour_of="docker.io/ai/gemma3:latest", needed=5 * GB, free=4 * GB
    )
    script.load("gemma3", request=request, memory=5 * GB, promised=5 * GB, budget=64 * GB)

    found = script.why("smollm2")

    assert (
        "The budget for engines would have done for both; the machine's memory was used otherwise."
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
    script.load("gemma3", request=request, memory=5 * GB, promised=5 * GB, budget=6 * GB)

    found = script.why("gemma3")

    assert (found.state, found.cause) == ("loaded", "asked_for")
    assert found.numbers["promised"] == 5 * GB
    assert found.numbers["budget"] == 6 * GB
    told = [step.text for step in found.steps]
    assert any("smollm2 on llama.cpp) is to end: gemma3 needs the room" in text for text in told)
    assert types(found).index("engine_exited") < types(found).index("load_admitted")


def test_a_model_nobody_has_used_for_its_keep_alive(script: Any) -> None:
    engine = script.load()
    script.evict(engine, "idle", idle_seconds=300.2)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("unloaded", "idle")
    assert found.numbers == {"memory": 444e6, "idle_seconds": 300.2}
    assert "because nobody had used it for 5m, which is as long as it is kept." in found.answer
    assert commands(found) == ["greenroom run smollm2", "greenroom stop && greenroom serve --keep-alive 30m"]


def test_a_model_somebody_unloaded(script: Any) -> None:
    engine = script.load()
    script.evict(engine, "unload", cause="r-0a1b2c3d-7", idle_seconds=12.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("unloaded", "unload")
    assert "somebody asked for it to be unloaded at 12:00:07" in found.answer
    assert found.numbers["idle_seconds"] == 12.0


def test_a_model_that_was_configured_differently(script: Any) -> None:
    engine = script.load()
    request = script.request()
    script.add(
        ev.ConfigChanged(
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
    assert "It has a context of 8192 tokens from its next load on." in found.answer


def test_a_model_whose_daemon_stopped(script: Any) -> None:
    engine = script.load()
    script.evict(engine, "shutdown")
    script.stopped()
    script.wait(60.0)
    script.daemon(pid=101)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("unloaded", "shutdown")
    assert "Greenroom stopped at 12:00:07" in found.answer
    assert found.also[0] == "Greenroom runs again since 12:01:08; nobody has asked for the model since."
    assert types(found)[-2:] == ["daemon_stopped", "daemon_started"]


def test_a_model_whose_backend_was_uninstalled_meanwhile(script: Any) -> None:
    script.model("qwen3", kind="safetensors-mlx")
    mlx = script.install("mlx", "0.32", wanted_by="explicit")
    engine = script.load("qwen3", backend="mlx", installation=mlx, reasons=("mlx reads it",))
    retiring = script.add(
        ev.InstallationRetiring(
            backend="mlx", installation_id=mlx, reason="uninstalled by the user", unwanted=True
        )
    )
    script.evict(engine, "retiring", cause=retiring)
    script.add(ev.InstallationRemoved(backend="mlx", installation_id=mlx, freed=297_000_000))

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
    assert "297 MB were freed. It stays uninstalled until somebody asks for it." in backend.answer


# failed


def test_an_engine_the_system_killed_for_its_memory(script: Any) -> None:
    engine = script.admit(memory=6 * GB)
    script.spawn(engine)
    script.wait(4.0)
    script.die(
        engine,
        "The llama.cpp engine for smollm2 was killed by SIGKILL while it loaded: the system ran out of "
        "memory (it had used 7654 MiB).",
        was_ready=False,
        signal="SIGKILL",
        memory=7654 * 2**20,
        first_lines=("init: loading model",),
        last_lines=("load_tensors: loading tensors", "load_tensors: CPU buffer"),
    )

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("failed", "out_of_memory")
    assert found.numbers == {"memory": 7654.0 * 2**20, "promised_to_it": 6.0 * GB, "failures": 1.0}
    assert "was killed by SIGKILL while it loaded: the system ran out of memory" in found.answer
    assert found.words[0].of == f"Last lines of engine {engine}"
    assert found.words[0].lines[-1] == "load_tensors: CPU buffer"
    assert commands(found) == ["greenroom run smollm2", f"greenroom logs {engine}"]


def test_an_engine_that_died_while_it_served(script: Any) -> None:
    engine = script.load()
    script.wait(30.0)
    script.die(
        engine,
        "The llama.cpp engine for smollm2 exited with code 134: GGML_ASSERT failed.",
        was_ready=True,
        code=134,
        memory=400_000_000,
        last_lines=("ggml.c:1234: GGML_ASSERT(x) failed",),
    )

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("failed", "crashed")
    assert found.numbers["exit_code"] == 134
    assert found.numbers["ready_seconds"] == 30.0
    assert "exited with code 134: GGML_ASSERT failed." in found.answer
    assert found.words[0].lines == ("ggml.c:1234: GGML_ASSERT(x) failed",)


def breaker(script: Any, until: float) -> None:
    for code in (1, 1, 2):
        engine = script.admit()
        script.spawn(engine)
        script.die(
            engine, f"It exited with code {code} while it loaded: bad tensor.", was_ready=False, code=code
        )
        script.wait(20.0)
    script.add(
        ev.BreakerOpened(
            model_id=SMOLLM2,
            model_ref="docker.io/ai/smollm2:latest",
            backend="llama.cpp",
            installation_id="1.0-ab12cd34.1",
            failures=3,
            until=script.now + until,
            reason="It exited with code 2 while it loaded: bad tensor.",
        )
    )
    script.refuse(
        "smollm2", "breaker_open", "smollm2 has failed 3 times on llama.cpp", request="r-0a1b2c3d-9"
    )


def test_a_model_that_keeps_dying_is_left_alone_and_each_attempt_is_told(script: Any) -> None:
    breaker(script, until=40.0)
    script.wait(15.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("failed", "breaker_open")
    assert found.numbers["failures"] == 3
    assert found.numbers["retry_in"] == pytest.approx(25.0)
    assert "it has failed 3 times in a row, so it is left alone until 12:01:47 (in 25s)." in found.answer
    attempts = [line for line in found.also if line.startswith("The load at")]
    assert len(attempts) == 3
    assert attempts[0].endswith("failed: It exited with code 1 while it loaded: bad tensor.")
    assert attempts[2].endswith("failed: It exited with code 2 while it loaded: bad tensor.")
    assert types(found).count("load_failed") == 3
    assert types(found)[-1] == "load_refused"


def test_a_model_that_a_new_version_breaks_is_told_with_the_way_back(script: Any) -> None:
    newer = script.install("llama.cpp", "2.0")
    for code in (1, 1, 2):
        engine = script.admit(installation=newer)
        script.spawn(engine)
        script.die(engine, "It cannot read it.", was_ready=False, code=code, last_lines=("bad tensor",))
    script.add(
        ev.ModelQuarantined(
            model_id=SMOLLM2,
            model_ref="docker.io/ai/smollm2:latest",
            backend="llama.cpp",
            installation_id=newer,
            version="2.0",
            back_to="1.0-ab12cd34.1",
            back_to_version="1.0",
            failures=3,
            reason="It cannot read it.",
        )
    )
    found = script.why("smollm2")
    assert (found.state, found.cause) == ("unloaded", "quarantined")
    assert "has failed 3 times in a row on llama.cpp 2.0, so it goes back to llama.cpp 1.0" in found.answer
    assert found.numbers["quarantined_after"] == 3
    assert [words.lines for words in found.words] == [("bad tensor",)]
    assert types(found)[-1] == "model_quarantined"

    script.load()
    found = script.why("smollm2")
    assert found.state == "loaded"
    (told,) = [line for line in found.also if "quarantined" in line]
    assert "failed 3 times in a row there and has run on llama.cpp 1.0" in told
    assert found.words[-1].of == "Last lines on llama.cpp 2.0"
    commands = [one.command for one in found.remedies]
    assert "greenroom upgrade-runner --backend llama.cpp --version 2.0" in commands
    assert "greenroom rollback-runner --backend llama.cpp --version 1.0" in commands


def test_once_the_pause_is_over_it_says_that_it_may_be_tried_again(script: Any) -> None:
    breaker(script, until=40.0)
    script.wait(60.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("failed", "load_failed")
    assert found.numbers["retry_in"] == 0
    assert "may be tried again" in found.answer


def test_two_failures_are_told_both(script: Any) -> None:
    for code in (3, 4):
        engine = script.admit()
        script.die(engine, f"It exited with code {code}.", was_ready=False, code=code)

    found = script.why("smollm2")

    assert found.numbers["failures"] == 2
    assert found.numbers["exit_code"] == 4
    assert any("failed: It exited with code 3." in line for line in found.also)


def test_a_daemon_that_was_killed_and_whose_engine_was_lost(script: Any) -> None:
    engine = script.load()
    script.wait(10.0)
    script.daemon(pid=101)
    script.add(ev.EngineLost(engine_id=engine, reason="its process is not there any more"))
    script.failed(
        engine, Failure(kind="transient", code="engine_lost", message="It is gone."), was_ready=False
    )

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("failed", "engine_lost")
    assert "failures" not in found.numbers, "it says nothing of the model"
    assert "its engine was found gone at 12:00:17" in found.answer
    assert "its process is not there any more." in found.answer
    killed = next(step for step in found.steps if step.type == "daemon_started")
    assert "(process 100) did not stop in order: it was killed" in killed.text


# loaded, loading


def test_a_daemon_that_was_killed_and_whose_engine_was_adopted(script: Any) -> None:
    engine = script.load()
    script.wait(10.0)
    script.daemon(pid=101)
    script.add(ev.EngineAdopted(engine_id=engine, pid=4711, started=1.0, endpoint="/tmp/x.sock"))
    script.wait(5.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("loaded", "adopted")
    assert f"engine {engine} serves it on llama.cpp since 12:00:07 (15s ago)" in found.answer
    assert "taken over by the next one at 12:00:17" in found.answer
    assert found.numbers["load_seconds"] == 0.8
    assert types(found)[-2:] == ["daemon_started", "engine_adopted"]
    assert script.why(engine).cause == "adopted"


@pytest.mark.parametrize(
    ("request_id", "cause", "because"),
    [
        ("warm-0a1b2c3d4e5f", "warm", "because the settings want smollm2 to be warm."),
        ("restore-0a1b2c3d4e5f", "restored", "because smollm2 was loaded when the daemon before ended."),
        ("r-0a1b2c3d-4", "asked_for", "because request r-0a1b2c3d-4 wanted smollm2."),
    ],
)
def test_who_a_model_is_loaded_for(script: Any, request_id: str, cause: str, because: str) -> None:
    engine = script.load(request=request_id)

    for name in ("smollm2", engine):
        assert script.why(name).cause == cause
        assert because in script.why(name).answer


def test_why_it_runs_on_this_backend_and_not_on_that_one(script: Any) -> None:
    script.model("qwen3", kind="safetensors")
    mlx = script.install("mlx", "0.32", wanted_by="explicit")
    reasons = (
        "mlx reads safetensors and is installed",
        "vllm would be preferred but is not installed; run: greenroom install-runner --backend vllm",
        "not vllm-metal: vllm-metal needs macOS",
    )
    script.load("qwen3", backend="mlx", installation=mlx, reasons=reasons)

    found = script.why("qwen3")
    preferred = script.why("vllm", backends={"vllm": ""})

    assert (found.state, found.cause) == ("loaded", "asked_for")
    assert found.also == (f"It runs on mlx because: {'; '.join(reasons)}.",)
    assert commands(found)[0] == "greenroom install-runner --backend vllm"
    assert (preferred.state, preferred.cause) == ("absent", "never_asked")
    assert "qwen3 was loaded on another backend, though it is preferred." in preferred.also


def test_a_load_that_takes_much_longer_than_the_ones_before(script: Any) -> None:
    for _ in range(3):
        script.evict(script.load(seconds=2.0), "idle")
    engine = script.admit(memory=GB, promised=GB, budget=8 * GB)
    script.spawn(engine)
    script.wait(19.9)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("loading", "slow")
    assert found.numbers["elapsed"] == 20.0
    assert found.numbers["usual_seconds"] == 2.0
    assert found.numbers["promised"] == GB
    assert "3 earlier loads on this installation took 2s (median)." in found.answer
    assert "This one takes 10 times as long so far." in found.answer
    assert commands(found)[0] == f"greenroom logs -f {engine}"


def test_a_first_load_has_nothing_to_be_compared_with(script: Any) -> None:
    script.admit()
    script.wait(3.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("loading", "loading")
    assert found.numbers["elapsed"] == 3.0
    assert "its engine is being started. It is the first on this installation" in found.answer


def test_a_model_loaded_in_two_modes(script: Any) -> None:
    first = script.load()
    second = script.load(mode="embedding")

    found = script.why("smollm2")

    assert second in found.answer
    assert f"It is loaded in completion mode too, as engine {first}." in found.also


def test_a_cold_load_that_had_to_install_its_backend_tells_that_first(script: Any) -> None:
    script.model("qwen3", kind="safetensors-mlx")
    request = script.request()
    mlx = script.install("mlx", "0.32", cause=request, wanted_by="request")
    script.load("qwen3", backend="mlx", installation=mlx, request=request)

    found = script.why("qwen3")
    asked = script.why(request)

    assert types(found)[:2] == ["install_requested", "installation_committed"]
    assert (asked.state, asked.cause) == ("served", "loaded")
    assert "It made Greenroom install mlx. That is done. It made Greenroom load qwen3 on mlx" in asked.answer
    assert script.why("mlx").cause == "request"


# refused


def test_a_model_that_does_not_fit(script: Any) -> None:
    script.refuse(
        "smollm2",
        "does_not_fit",
        "smollm2 needs 20.0 GiB of memory; engines may use 8.0 GiB in all.",
        needed=20 * 2.0**30,
        budget=8 * 2.0**30,
        promised=0.0,
    )

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("refused", "does_not_fit")
    assert found.numbers == {"needed": 20 * 2.0**30, "budget": 8 * 2.0**30, "promised": 0.0}
    assert "smollm2 needs 20.0 GiB of memory; engines may use 8.0 GiB in all." in found.answer
    assert commands(found) == ["greenroom stop && GREENROOM_MEMORY_BUDGET=22GB greenroom serve"]


def test_a_model_for_which_pinned_ones_leave_no_room(script: Any) -> None:
    gemma3 = script.model("gemma3")
    pinned = script.load("gemma3", memory=6 * GB)
    wish = ev.KeepAliveWished(
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
    assert found.also == ("gemma3 holds 6.00 GB and stays: a request wished so.",)
    assert commands(found)[0] == "greenroom ps"
    assert "It stays until somebody unloads it: a request wished so." in script.why("gemma3").also


ABSENT = 'backend "mlx" is not installed; run: greenroom install-runner --backend mlx'


def test_a_model_that_several_absent_backends_could_serve(script: Any) -> None:
    script.model("qwen3", kind="safetensors")
    advice = "(or, with vllm: greenroom install-runner --backend vllm)"
    script.refuse("qwen3", "backend_not_installed", ABSENT, advice=advice)

    assert commands(script.why("qwen3")) == [
        "greenroom install-runner --backend mlx",
        "greenroom install-runner --backend vllm",
        "greenroom run qwen3",
    ]


def test_a_model_whose_only_backend_is_absent_under_ask(script: Any) -> None:
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
    assert "mlx 0.32 is installed by now: the next request is served." in found.also
    assert commands(found) == ["greenroom run qwen3"]
    assert types(found)[-1] == "installation_committed"


def test_a_backend_of_another_platform(script: Any) -> None:
    verdict = "vllm-metal needs macOS 15 or newer on Apple silicon"

    found = script.why("vllm-metal", backends={"vllm-metal": verdict})

    assert (found.state, found.cause) == ("absent", "unsupported_platform")
    assert verdict in found.answer


# installations


def hash_mismatch() -> Failure:
    return Failure(
        kind="permanent",
        code="hash_mismatch",
        message="A downloaded file is not the one that was locked: mlx_lm-0.32.2-py3-none-any.whl.",
        advice="Check the package index, or a proxy that changes files.",
        detail="error: Hash mismatch\n  Expected: sha256:aa\n  Computed: sha256:bb",
    )


def test_an_installation_that_failed_on_a_wrong_hash(script: Any) -> None:
    script.model("qwen3", kind="safetensors-mlx")
    request = script.request()
    asked = script.add(
        ev.InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="request"), cause=request
    )
    script.add(ev.InstallFailed(job="mlx.1", backend="mlx", failure=hash_mismatch()), cause=asked, after=7.0)
    script.refuse(
        "qwen3",
        "hash_mismatch",
        f"mlx could not be installed: {hash_mismatch().message}",
        request=request,
    )

    backend = script.why("mlx")
    model = script.why("qwen3")

    assert (backend.state, backend.cause) == ("failed", "hash_mismatch")
    assert backend.numbers == {"attempts": 1.0}
    assert "It is not tried again by itself." in backend.answer
    assert backend.words[0].lines == (
        "error: Hash mismatch",
        "  Expected: sha256:aa",
        "  Computed: sha256:bb",
    )
    assert types(backend) == ["install_requested", "install_failed", "load_refused"]
    assert commands(backend) == ["greenroom install-runner --backend mlx"]
    assert (model.state, model.cause) == ("refused", "hash_mismatch")
    assert model.numbers == {"attempts": 1.0}
    assert model.words == backend.words
    assert {"install_requested", "install_failed"} <= set(types(model))


def test_an_installation_that_is_tried_again_and_again(script: Any) -> None:
    asked = script.add(ev.InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="explicit"))
    for attempt, wait in ((1, 2.0), (2, 60.0)):
        script.add(
            ev.InstallAttemptFailed(
                job="mlx.1",
                backend="mlx",
                attempt=attempt,
                failure=Failure(
                    kind="transient", code="unreachable", message=f"The index did not answer ({attempt})."
                ),
                retry_at=script.now + 3.0 + wait,
            ),
            cause=asked,
            after=3.0,
        )
    script.wait(10.0)

    found = script.why("mlx")

    assert (found.state, found.cause) == ("waiting_to_retry", "unreachable")
    assert found.numbers == {"attempt": 3.0, "failures": 2.0, "elapsed": 16.0, "retry_at": script.now + 50.0}
    assert "2 attempts have failed, the next one begins at 12:01:13 (in 50s)." in found.answer
    assert found.also[0] == ("Attempt 1 failed, the next was set for 12:00:12: The index did not answer (1).")
    assert types(found) == ["install_requested", "install_attempt_failed", "install_attempt_failed"]


def test_an_installation_under_way(script: Any) -> None:
    script.add(ev.InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="request"))
    script.model("qwen3", kind="safetensors-mlx")
    script.wait(8.0)

    found = script.why("mlx")
    model = script.why("qwen3")

    assert (found.state, found.cause) == ("installing", "request")
    assert found.numbers == {"attempt": 1.0, "failures": 0.0, "elapsed": 10.0}
    assert model.cause == "never_asked"
    assert "mlx is being installed because a request needs it, and it reads safetensors-mlx." in model.also


def test_a_broken_installation(script: Any) -> None:
    mlx = script.install("mlx", "0.32", wanted_by="explicit")
    script.stopped()
    script.daemon(pid=101)
    script.add(
        ev.InstallationBroken(backend="mlx", installation_id=mlx, reason="env/lib/mlx/core.so is missing")
    )

    found = script.why("mlx")

    assert (found.state, found.cause) == ("broken", "broken")
    assert found.numbers == {"size": 106e6}
    assert "env/lib/mlx/core.so is missing." in found.answer
    assert commands(found) == ["greenroom reinstall-runner --backend mlx"]


def test_an_installation_somebody_ended(script: Any) -> None:
    script.add(ev.InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="explicit"))
    script.add(ev.InstallCancelled(job="mlx.1", backend="mlx", reason="cancelled by the user", unwanted=True))

    found = script.why("mlx")

    assert (found.state, found.cause) == ("absent", "cancelled")
    assert "its installation was ended at 12:00:07 (just now): cancelled by the user." in found.answer


def test_an_installation_that_vanished_from_the_disk(script: Any) -> None:
    mlx = script.install("mlx", "0.32", wanted_by="explicit")
    script.add(ev.InstallationMissing(backend="mlx", installation_id=mlx, reason="its folder is gone"))

    assert (script.why("mlx").state, script.why("mlx").cause) == ("absent", "missing")


def test_an_installation_that_waits_for_its_engines(script: Any) -> None:
    engine = script.load()
    script.add(
        ev.InstallationRetiring(
            backend="llama.cpp",
            installation_id="1.0-ab12cd34.1",
            reason="uninstalled by the user",
            unwanted=True,
        )
    )

    found = script.why("llama.cpp")

    assert (found.state, found.cause) == ("retiring", "uninstalled")
    assert found.numbers == {"engines": 1.0}
    assert f"It waits for {engine} to end." in found.answer


def test_a_backend_that_is_installed_says_for_whom_and_what_it_serves(script: Any) -> None:
    engine = script.load()

    found = script.why("llama.cpp")

    assert (found.state, found.cause) == ("installed", "default")
    assert found.numbers == {"size": 106e6, "seconds": 5.0}
    assert "It was installed in 5s because it is a default backend." in found.answer
    assert found.also == (f"It serves smollm2 (engine {engine}).",)


def test_an_installation_of_the_users_own(script: Any) -> None:
    theirs = Installation(id="external", backend="mlx", version="0.31", managed=False, root="/opt/mlx")
    script.add(ev.InstallationFound(backend="mlx", installation=theirs))

    found = script.why("mlx")

    assert (found.state, found.cause) == ("installed", "named_in_the_config")
    assert "/opt/mlx" in found.answer


# not here, never asked for


def test_a_model_nobody_has_asked_for(script: Any) -> None:
    found = script.why("smollm2")

    assert (found.state, found.cause) == ("unloaded", "never_asked")
    assert found.numbers == {"size": 98e6}
    assert "it is here since 12:00:07 (just now) (98.0 MB, gguf, Q4_1), and nobody has asked for it." in (
        found.answer
    )
    assert found.also == ("llama.cpp can serve it and is installed.",)
    assert commands(found) == ["greenroom run smollm2"]


def test_a_pull_that_failed(script: Any) -> None:
    asked = script.add(ev.PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"))
    script.add(
        ev.PullAttemptFailed(
            job="pull.9",
            attempt=1,
            failure=Failure(kind="transient", code="unreachable", message="The registry did not answer."),
            retry_at=script.now + 2,
        ),
        cause=asked,
        after=1.0,
    )
    script.add(
        ev.PullFailed(
            job="pull.9",
            failure=Failure(
                kind="permanent",
                code="no_space",
                message="It needs 5.00 GB, and 1.00 GB are free.",
                advice="Make room: greenroom rm MODEL.",
            ),
        ),
        cause=asked,
        after=2.0,
    )

    found = script.why("gemma3")

    assert (found.state, found.cause) == ("not_here", "no_space")
    assert found.numbers == {"attempts": 2.0}
    assert "It needs 5.00 GB, and 1.00 GB are free. Make room: greenroom rm MODEL." in found.answer
    assert types(found) == ["pull_requested", "pull_attempt_failed", "pull_failed"]
    assert commands(found) == ["greenroom pull gemma3"]


def test_a_pull_that_waits_for_its_next_attempt(script: Any) -> None:
    asked = script.add(ev.PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"))
    script.add(
        ev.PullAttemptFailed(
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
    assert "one attempt to fetch it has failed, the next one begins at 12:00:38 (in 30s)." in found.answer


def test_pulls_under_way_and_ended(script: Any) -> None:
    script.add(ev.PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"))
    script.wait(4.0)
    assert (script.why("gemma3").state, script.why("gemma3").numbers) == ("pulling", {"elapsed": 4.0})

    script.add(ev.PullCancelled(job="pull.9", reason="cancelled by the user"))
    assert (script.why("gemma3").state, script.why("gemma3").cause) == ("not_here", "cancelled")


def test_a_model_that_was_removed(script: Any) -> None:
    script.load()
    script.add(ev.ModelRemoved(model_id=SMOLLM2, reason="removed by the user", freed=98_000_000))

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("not_here", "removed")
    assert found.numbers == {"freed": 98e6}
    assert types(found)[-1] == "model_removed"


def test_a_model_that_was_removed_is_fetched_again_by_what_it_was_fetched_as(script: Any) -> None:
    reference = "file:/models/mine.gguf"
    asked = script.add(ev.PullRequested(job="pull.7", reference=reference))
    model = Model(id="sha256:" + "7" * 64, tags=(reference,), format="gguf", size=192)
    script.add(ev.ModelCommitted(job="pull.7", model=model), cause=asked)
    script.add(ev.ModelTagged(model_id=model.id, tags=(reference, "docker.io/ai/mine:latest")))
    script.add(ev.ModelTagged(model_id=model.id, tags=(reference,)))
    script.add(ev.ModelRemoved(model_id=model.id, reason="removed by the user", freed=192))

    found = script.why("mine")

    assert found.cause == "removed"
    assert [one.command for one in found.remedies] == [f"greenroom pull {reference}"]


# engines, requests, the daemon


def test_an_engine_tells_from_its_request_to_its_last_words(script: Any) -> None:
    request = script.request()
    engine = script.load(request=request)
    script.wait(2.0)
    script.die(
        engine, "It was killed by SIGSEGV.", was_ready=True, signal="SIGSEGV", last_lines=("segfault",)
    )

    found = script.why(engine)

    assert (found.kind, found.state, found.cause) == ("engine", "gone", "crashed")
    assert f"because request {request} wanted smollm2." in found.answer
    assert found.numbers["load_seconds"] == 0.8
    assert found.words[0].lines == ("segfault",)
    assert types(found)[0] == "backend_chosen"
    assert types(found)[-1] == "load_failed"
    assert script.why(engine[:13]).id == engine


def test_a_request_tells_who_had_to_make_room_for_it(script: Any) -> None:
    script.model("gemma3")
    smollm2 = script.load(memory=2 * GB)
    request = script.request()
    script.evict(
        smollm2,
        "room",
        cause=request,
        in_favour_of="docker.io/ai/gemma3:latest",
        needed=5 * GB,
        free=4 * GB,
        idle_seconds=30.0,
    )
    script.load("gemma3", request=request, memory=5 * GB)

    found = script.why(request)

    assert (found.kind, found.state, found.cause) == ("request", "served", "loaded")
    assert found.numbers["needed"] == 5 * GB
    assert found.numbers["idle_seconds"] == 30.0
    assert "smollm2 had to make room for it: 5.00 GB were needed and 4.00 GB free" in found.answer


def test_a_request_that_began_an_installation_tells_how_that_stands(script: Any) -> None:
    request = script.request()
    asked = script.add(
        ev.InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="request"), cause=request
    )
    assert (script.why(request).state, script.why(request).cause) == ("waiting", "installing")

    script.add(ev.InstallFailed(job="mlx.1", backend="mlx", failure=hash_mismatch()), cause=asked)
    found = script.why(request)
    assert (found.state, found.cause) == ("failed", "hash_mismatch")
    assert found.words[0].lines[0] == "error: Hash mismatch"


def test_a_request_that_began_a_pull_tells_how_that_stands(script: Any) -> None:
    request = script.request()
    script.add(ev.PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"), cause=request)
    assert (script.why(request).state, script.why(request).cause) == ("waiting", "pulling")

    script.add(ev.PullCancelled(job="pull.9", reason="cancelled by the user"))
    assert (script.why(request).state, script.why(request).cause) == ("failed", "cancelled")


def test_a_request_that_changed_nothing(script: Any) -> None:
    script.load()

    found = script.why("r-0a1b2c3d-999")

    assert (found.state, found.cause) == ("served", "nothing_changed")


def test_the_daemon_tells_how_the_one_before_it_ended(script: Any) -> None:
    script.daemon(pid=101)

    found = script.why("daemon")

    assert (found.state, found.cause) == ("running", "after_a_kill")
    assert found.numbers == {"starts": 2.0, "killed": 1.0}

    script.stopped(pid=101)
    assert (script.why("daemon").state, script.why("daemon").cause) == ("stopped", "stopped")


# names


@pytest.mark.parametrize(
    "name", ["smollm2", "ai/smollm2", "docker.io/ai/smollm2:latest", "SMOLLM2:latest", " smollm2 "]
)
def test_a_model_is_known_by_any_of_its_names(script: Any, name: str) -> None:
    assert script.why(name).kind == "model"
    assert script.why(name).name == "smollm2"


def test_a_model_is_known_by_its_id_too(script: Any) -> None:
    assert script.why(SMOLLM2).name == "smollm2"
    assert script.why(SMOLLM2[7:19]).name == "smollm2"


@pytest.mark.parametrize(
    ("name", "near"),
    [("smolm2", "smollm2"), ("lama.cpp", "llama.cpp"), ("18bd0f5a2c0-11", "18bd0f5a2c0-1")],
)
def test_an_unknown_name_offers_near_ones(script: Any, name: str, near: str) -> None:
    script.load()

    with pytest.raises(UnknownName, match="Did you mean") as raised:
        script.why(name)

    assert near in raised.value.near


def test_a_name_like_nothing_offers_nothing(script: Any) -> None:
    with pytest.raises(UnknownName) as raised:
        script.why("zzzzzz")

    assert raised.value.near == ()


def test_an_empty_journal_knows_the_backends_there_are(empty_script: Any) -> None:
    found = explain([], "mlx", 0.0, backends={"mlx": ""})

    assert (found.state, found.cause) == ("absent", "never_asked")
    with pytest.raises(UnknownName):
        explain([], "smollm2", 0.0)


# journals that are not as they should be


def test_damage_ends_the_history_with_a_notice(script: Any) -> None:
    script.load()

    def damaged() -> Any:
        yield from script.records
        raise JournalDamaged("event 13 is not what was written", 13)

    found = explain(damaged(), "smollm2", script.now)

    assert found.state == "loaded"
    assert found.notices == ("The journal is damaged from event 13 on: event 13 is not what was written",)


def test_an_event_of_a_newer_version_is_passed_over_with_a_notice(script: Any) -> None:
    script.load()
    script.raw("scheduler", "load_moved", '{"engine_id":"18bd0f5a2c0-1"}')
    script.raw("scheduler", "load_admitted", "{}", schema=99)

    found = script.why("smollm2")

    assert found.state == "loaded"
    assert found.notices[0].startswith("Not all of the journal can be understood: event 11 (scheduler/3)")


def test_a_hosts_own_events_do_no_harm(script: Any) -> None:
    script.raw("host/orders", "order_placed", '{"model":"smollm2","engine_id":7,"spec":[1]}')
    script.raw("host/orders", "order_placed", "[]")

    assert script.why("smollm2").cause == "never_asked"


def test_a_clock_that_is_behind_the_journal_is_said(script: Any) -> None:
    found = explain(script.records, "smollm2", script.now - 3600)

    assert "ahead of this machine's clock" in found.notices[0]


def test_a_long_life_is_told_from_its_last_episode_and_bounded(script: Any) -> None:
    for _ in range(300):
        script.evict(script.load(), "idle", idle_seconds=300.0)

    found = script.why("smollm2")

    assert found.cause == "idle"
    assert types(found)[0] == "backend_chosen"
    assert len(found.steps) == 8


def test_an_explanation_is_the_same_for_the_same_events_and_survives_json(script: Any) -> None:
    script.load()

    assert script.why("smollm2") == script.why("smollm2")
    found = script.why("smollm2")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Explanation) == found


def test_an_answer_ends_with_the_command_that_would_change_it(script: Any) -> None:
    engine = script.load()
    script.evict(engine, "idle", idle_seconds=300.0)

    lines = script.why("smollm2").text(script.now).splitlines()

    assert " ".join(lines[:2]) == (
        "smollm2 is not loaded: it was unloaded at 12:00:07 (just now) because nobody had used it for 5m, "
        "which is as long as it is kept."
    )
    assert lines[2:7] == [
        "",
        "It ran on llama.cpp because: llama.cpp reads gguf and is installed.",
        "",
        "How it came about:",
        "  12:00:07  llama.cpp serves smollm2 (completion): llama.cpp reads gguf and is installed.",
    ]
    assert lines[8:] == [
        f"  12:00:07  Engine {engine} (smollm2 on llama.cpp) is to be started.",
        f"  12:00:07  Engine {engine} (smollm2 on llama.cpp) runs as process 4711 and loads its model.",
        f"  12:00:07  Engine {engine} (smollm2 on llama.cpp) is ready after 0.8s.",
        f"  12:00:07  Engine {engine} (smollm2 on llama.cpp) is to end: nobody has used it for 5m.",
        f"  12:00:07  Engine {engine} (smollm2 on llama.cpp) was asked to end: it is not wanted any more.",
        f"  12:00:08  Engine {engine} (smollm2 on llama.cpp) has ended (code 0), as it was asked to.",
        "",
        "To load it again:      greenroom run smollm2",
        "To keep models longer: greenroom stop && greenroom serve --keep-alive 30m",
    ]
