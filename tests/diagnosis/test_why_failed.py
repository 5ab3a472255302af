"""Why a model failed: scripted histories, each with the exact cause and numbers."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from explained import GB, SMOLLM2, commands, types
from greenroom.actors.daemon_log import DevicesChanged
from greenroom.actors.engine_runner.events import EngineLost
from greenroom.actors.graphics import GraphicsDevice
from greenroom.actors.scheduler.events import BreakerOpened, ModelQuarantined
from greenroom.actors.values import Failure

CARD = GraphicsDevice(id="GPU-1", maker="nvidia", name="NVIDIA L4", driver="570.1")
MISMATCH = Failure(
    kind="permanent", code="driver_mismatch", message="The driver was updated.", advice="Restart."
)


def test_why_says_that_the_system_killed_an_engine_for_its_memory(script: Any) -> None:
    engine = script.admit(memory=6 * GB)
    script.spawn(engine)
    script.wait(4.0)
    script.die(
        engine,
        "The llama.cpp engine for smollm2 was killed by SIGKILL while it loaded: the system ran out of "
        "memory (it had used 8.03 GB).",
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


def test_why_says_that_an_engine_died_while_serving(script: Any) -> None:
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
        BreakerOpened(
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


def test_a_model_that_keeps_crashing_is_paused_and_each_attempt_is_listed(script: Any) -> None:
    breaker(script, until=40.0)
    script.wait(15.0)

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("failed", "breaker_open")
    assert found.numbers["failures"] == 3
    assert found.numbers["retry_in"] == pytest.approx(25.0)
    assert "it has failed 3 times in a row and will not be retried before 12:01:47 (in 25s)." in found.answer
    attempts = [line for line in found.also if line.startswith("The load at")]
    assert len(attempts) == 3
    assert attempts[0].endswith("failed: It exited with code 1 while it loaded: bad tensor.")
    assert attempts[2].endswith("failed: It exited with code 2 while it loaded: bad tensor.")
    assert types(found).count("load_failed") == 3
    assert types(found)[-1] == "load_refused"


def test_a_model_that_a_new_version_breaks_is_explained_with_the_rollback_command(script: Any) -> None:
    newer = script.install("llama.cpp", "2.0")
    for code in (1, 1, 2):
        engine = script.admit(installation=newer)
        script.spawn(engine)
        script.die(engine, "It cannot read it.", was_ready=False, code=code, last_lines=("bad tensor",))
    script.add(
        ModelQuarantined(
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
    assert (
        "failed 3 times in a row on llama.cpp 2.0 and is quarantined there. Its next load uses llama.cpp 1.0"
        in found.answer
    )
    assert found.numbers["quarantined_after"] == 3
    assert [words.lines for words in found.words] == [("bad tensor",)]
    assert types(found)[-1] == "model_quarantined"

    script.load()
    found = script.why("smollm2")
    assert found.state == "loaded"
    (told,) = [line for line in found.also if "quarantined" in line]
    assert "failed 3 times in a row there but has run on llama.cpp 1.0" in told
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
    assert "will be retried on request" in found.answer


def test_two_failures_are_both_reported(script: Any) -> None:
    for code in (3, 4):
        engine = script.admit()
        script.die(engine, f"It exited with code {code}.", was_ready=False, code=code)

    found = script.why("smollm2")

    assert found.numbers["failures"] == 2
    assert found.numbers["exit_code"] == 4
    assert any("failed: It exited with code 3." in line for line in found.also)


def test_why_says_that_an_engine_was_lost_with_a_killed_daemon(script: Any) -> None:
    engine = script.load()
    script.wait(10.0)
    script.daemon(pid=101)
    script.add(EngineLost(engine_id=engine, reason="its process no longer exists"))
    script.failed(
        engine, Failure(kind="transient", code="engine_lost", message="It is gone."), was_ready=False
    )

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("failed", "engine_lost")
    assert "failures" not in found.numbers, "it says nothing of the model"
    assert "its engine was found missing at 12:00:17" in found.answer
    assert "its process no longer exists." in found.answer
    killed = next(step for step in found.steps if step.type == "daemon_started")
    assert "(process 100) did not shut down cleanly." in killed.text


@pytest.mark.parametrize(
    ("after", "how"),
    [
        ((), "it is gone"),
        ((replace(CARD, problem=MISMATCH),), "The driver was updated. Restart."),
        ((replace(CARD, driver="580.2"),), "its driver was updated from 570.1 to 580.2."),
    ],
)
def test_why_says_first_that_the_device_of_an_engine_went_away(
    script: Any, after: tuple[GraphicsDevice, ...], how: str
) -> None:
    script.add(DevicesChanged(after=(CARD,)))
    engine = script.load(device=CARD.id)
    script.wait(60.0)
    script.die(engine, "The engine was killed by SIGABRT.", was_ready=True, signal="SIGABRT")
    assert script.why("smollm2").cause == "crashed"
    script.wait(2.0)
    script.add(DevicesChanged(before=(CARD,), after=after))

    found = script.why("smollm2")

    assert (found.state, found.cause) == ("failed", "device_lost")
    first = "smollm2 is not loaded: its graphics device NVIDIA L4 was lost at 12:01:"
    assert found.answer.startswith(first)
    assert how in found.answer
    assert "Its engine crashed" in found.answer
    assert any("NVIDIA L4" in step.text for step in found.steps)
    assert commands(found)[0] == "greenroom devices"
    script.load()
    found = script.why("smollm2")
    assert (found.state, found.cause) == ("loaded", "device_lost")
    assert found.answer.startswith("smollm2 runs elsewhere because its graphics device NVIDIA L4 was lost")
    script.load(device=CARD.id)
    assert script.why("smollm2").cause == "asked_for"


def test_a_device_of_another_engine_or_of_another_time_is_not_to_blame(script: Any) -> None:
    script.add(DevicesChanged(before=(CARD,)))
    script.wait(600.0)
    engine = script.load(device=CARD.id)
    script.die(engine, "It exited with code 3.", was_ready=True, code=3)
    script.add(DevicesChanged(before=(replace(CARD, id="GPU-2"),)))

    assert script.why("smollm2").cause == "crashed"
    assert script.why(engine).cause == "crashed"


def test_an_engine_that_lost_its_device_says_so_itself(script: Any) -> None:
    engine = script.load(device=CARD.id)
    lost = Failure(kind="transient", code="device_lost", message="It is gone.", blame="machine")
    script.failed(engine, lost, was_ready=True)
    found = script.why("smollm2")
    assert (found.state, found.cause) == ("failed", "device_lost")
    assert found.answer.startswith("smollm2 is not loaded: its graphics device was lost, which happens when")
