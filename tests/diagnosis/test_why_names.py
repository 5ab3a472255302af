"""What may be asked about: engines, requests, the daemon, and models by any of their names."""

from __future__ import annotations

from typing import Any

import pytest

from explained import GB, SMOLLM2, hash_mismatch, types
from greenroom.actors.daemon_log import DevicesChanged
from greenroom.actors.graphics import GraphicsDevice
from greenroom.actors.installer.events import InstallFailed, InstallRequested
from greenroom.actors.library.events import PullCancelled, PullRequested
from greenroom.actors.values import Failure
from greenroom.runner.diagnosis.explain import UnknownName, explain

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
    assert f"because request {request} needed smollm2." in found.answer
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
    assert "smollm2 was evicted to make room for it: 5.00 GB was needed and 4.00 GB free" in found.answer


def test_a_request_that_began_an_installation_tells_how_that_stands(script: Any) -> None:
    request = script.request()
    asked = script.add(
        InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="request"), cause=request
    )
    assert (script.why(request).state, script.why(request).cause) == ("waiting", "installing")

    script.add(InstallFailed(job="mlx.1", backend="mlx", failure=hash_mismatch()), cause=asked)
    found = script.why(request)
    assert (found.state, found.cause) == ("failed", "hash_mismatch")
    assert found.words[0].lines[0] == "error: Hash mismatch"


def test_a_request_that_began_a_pull_tells_how_that_stands(script: Any) -> None:
    request = script.request()
    script.add(PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"), cause=request)
    assert (script.why(request).state, script.why(request).cause) == ("waiting", "pulling")

    script.add(PullCancelled(job="pull.9", reason="requested by the user"))
    assert (script.why(request).state, script.why(request).cause) == ("failed", "cancelled")


def test_the_daemon_tells_how_the_one_before_it_ended(script: Any) -> None:
    script.daemon(pid=101)

    found = script.why("daemon")

    assert (found.state, found.cause) == ("running", "after_a_kill")
    assert found.numbers == {"starts": 2.0, "killed": 1.0}

    script.stopped(pid=101)
    assert (script.why("daemon").state, script.why("daemon").cause) == ("stopped", "stopped")


def test_the_daemon_tells_what_is_wrong_with_a_device_and_still_counts_kills(script: Any) -> None:
    mismatch = Failure(kind="permanent", code="driver_mismatch", message="They differ.", advice="Restart.")
    card = GraphicsDevice(id="GPU-1", maker="nvidia", name="NVIDIA L4", problem=mismatch)
    script.add(DevicesChanged(after=(card,)))
    script.daemon(pid=101)

    found = script.why("daemon")

    assert found.numbers == {"starts": 2.0, "killed": 1.0}
    assert found.cause == "after_a_kill"
    assert found.also == ("NVIDIA L4 cannot be used: They differ. Restart.",)
    assert any("NVIDIA L4" in step.text for step in found.steps)


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


def test_a_name_unlike_any_other_gets_no_suggestion(script: Any) -> None:
    with pytest.raises(UnknownName) as raised:
        script.why("zzzzzz")

    assert raised.value.near == ()


def test_an_empty_journal_knows_the_backends_there_are(empty_script: Any) -> None:
    found = explain([], "mlx", 0.0, backends={"mlx": ""})

    assert (found.state, found.cause) == ("absent", "never_asked")
    with pytest.raises(UnknownName):
        explain([], "smollm2", 0.0)


# other names


def test_an_event_tells_its_cause_and_what_came_of_it(script: Any) -> None:
    request = script.request()
    engine = script.load(request=request)

    found = script.why("scheduler/2")

    assert (found.kind, found.state, found.cause) == ("event", "stored", "load_admitted")
    assert "Loading smollm2 on llama.cpp" in found.answer
    assert found.also == (f"It was caused by request {request}.", "It led to 1 event.")
    assert types(found) == ["load_admitted", "engine_start_requested"]
    assert [one.command for one in found.remedies] == [
        "greenroom why smollm2",
        f"greenroom why {engine}",
        "greenroom why llama.cpp",
        f"greenroom replay --at {found.steps[0].seq}",
    ]


def test_a_process_is_its_engine_or_its_daemon(script: Any) -> None:
    engine = script.load()

    assert (script.why("4711").kind, script.why("4711").id) == ("engine", engine)
    assert len(script.why("4711").steps) == len(script.why(engine).steps)
    assert script.why("100").kind == "daemon"
    with pytest.raises(UnknownName, match="No engine or daemon in this journal was process 4712"):
        script.why("4712")


def test_a_job_tells_how_it_ended(script: Any) -> None:
    found = script.why("llama.cpp.1")
    assert (found.kind, found.state) == ("job", "done")
    assert found.answer.startswith("Job llama.cpp.1 installs llama.cpp. It was requested at 12:00:00")

    request = script.request()
    script.add(PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"), cause=request)
    script.add(PullCancelled(job="pull.9", reason="a client cancelled it"))
    found = script.why("pull.9")
    assert (found.state, found.cause) == ("failed", "cancelled")
    assert f"by request {request} and was cancelled at" in found.answer
    assert found.remedies[0].command == "greenroom why gemma3"


@pytest.mark.parametrize(
    "name",
    [
        "sha256:736d6f",
        "736d6f6c6c6d32",
        "poet",
        "org/poet",
        "hf.co/org/poet",
        "why was poet unloaded",
        "poet slow",
    ],
)
def test_a_model_is_found_by_every_name_people_type(script: Any, name: str) -> None:
    if "poet" in name:
        reference = "huggingface.co/org/poet:Q4_K_M"
        script.add(PullRequested(job="pull.9", reference=reference))
        assert script.why(name).id == reference
    else:
        assert script.why(name).id == SMOLLM2


@pytest.mark.parametrize(("name", "kind"), [("server", "daemon"), ("Queue", "queue"), ("ledger", "memory")])
def test_what_there_is_one_of_has_a_name(script: Any, name: str, kind: str) -> None:
    assert script.why(name).kind == kind


@pytest.mark.parametrize(
    ("name", "sentence", "advice"),
    [
        (
            "gemma3",
            "gemma3 is not in the store, and was never pulled.",
            "To pull it: greenroom pull gemma3",
        ),
        ("scheduler/99", "There is no event scheduler/99: the last of scheduler is scheduler/3.", ""),
        ("00aabbccdd-7", "The journal has no engine 00aabbccdd-7.", "To see the latest: greenroom ps --all"),
        ("mlx.7", "The journal has no job mlx.7.", ""),
    ],
)
def test_a_name_that_nothing_has_is_told_with_what_to_do(
    script: Any, name: str, sentence: str, advice: str
) -> None:
    script.evict(script.load(), "idle", idle_seconds=300.0)
    with pytest.raises(UnknownName) as raised:
        script.why(name, backends={"mlx": ""})
    assert (str(raised.value), raised.value.advice) == (sentence, advice)


def test_a_word_behind_the_name_asks_for_the_last_time_of_that(script: Any) -> None:
    script.refuse("smollm2", "does_not_fit", "smollm2 needs 9 GB.")
    script.evict(script.load(), "idle", idle_seconds=300.0)
    script.die(script.load(), "It was killed by SIGSEGV.", was_ready=True, signal="SIGSEGV")
    script.load()

    plain = script.why("smollm2")
    unloaded = script.why("why was smollm2 evicted")
    assert (unloaded.state, unloaded.answer) == ("loaded", plain.answer), "what holds now comes first"
    assert "It was killed by SIGSEGV" in unloaded.also[0]
    assert "smollm2 needs 9 GB." in script.why("smollm2 refused").also[0]
    assert script.why("smollm2 removed").also[0] == "According to the journal, it has never been removed."


def test_a_word_behind_the_name_adds_nothing_to_an_answer_about_just_that(script: Any) -> None:
    script.evict(script.load(), "idle", idle_seconds=300.0)
    assert script.why("smollm2 unloaded").also == script.why("smollm2").also
