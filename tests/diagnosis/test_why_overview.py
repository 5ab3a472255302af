"""What is not well, and what the daemon, its queue, its memory and its requests say when asked about."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from explained import GB
from greenroom.actors.daemon_log import DaemonStarted, SettingInForce
from greenroom.actors.installer.events import InstallAttemptFailed, InstallRequested
from greenroom.actors.library.events import ModelCommitted, PullFailed, PullRequested
from greenroom.actors.scheduler.messages import EngineAccount, LedgerReading, QueueEntry
from greenroom.actors.values import Failure, Model
from greenroom.runner.diagnosis.live import DOWN, Live
from greenroom.runner.record.row import Row

OFFLINE = Failure(kind="transient", code="unreachable", message="The index cannot be reached.")
REQUEST = "r-0a1b2c3d-7"


def entry(**more: Any) -> QueueEntry:
    usual: dict[str, Any] = {
        "request_id": REQUEST,
        "model_ref": "docker.io/ai/smollm2:latest",
        "mode": "completion",
        "place": 1,
        "phase": "waiting_for_memory",
        "message": "waiting for memory: it needs 303 MB, 250 MB is free",
        "follows": "",
        "waited": 7.0,
        "left": 290.0,
        "caller": "curl (process 4711)",
    }
    return QueueEntry(**(usual | more))


def account(engine: str, **more: Any) -> EngineAccount:
    usual: dict[str, Any] = {
        "engine_id": engine,
        "reserved": 444_000_000,
        "measured": 400_000_000,
        "peak": 400_000_000,
        "slots": 4,
        "inside": 0,
        "served": 3,
        "queue": 0,
        "keep_alive": 300.0,
        "idle_seconds": None,
        "expires_in": None,
        "cause": "scheduler/2",
    }
    return EngineAccount(**(usual | more))


def live(*engines: EngineAccount, queue: tuple[QueueEntry, ...] = (), **more: Any) -> Live:
    reserved = sum(one.reserved for one in engines)
    ledger = LedgerReading(
        budget=8 * GB,
        available=9 * GB,
        reserved=reserved,
        free=8 * GB - reserved,
        waiting=len(queue),
        engines=engines,
        queue=queue,
    )
    return Live(pid=100, ledger=ledger, **more)


def inside(engine: str, number: int, **more: Any) -> Row:
    usual: dict[str, Any] = {
        "id": f"r-0a1b2c3d-{number}",
        "at": 1.0 * number,
        "method": "POST",
        "path": "/v1/chat/completions",
        "family": "openai",
        "caller": "curl (process 4711)",
        "engine": engine,
        "seconds": 12.0,
        "tokens_out": 96,
        "tokens_per_second": 8.0,
    }
    return Row(**(usual | more))


# nothing in particular


def test_without_a_name_all_is_well_in_two_sentences(script: Any) -> None:
    script.load()

    found = script.why("", live=live())

    assert (found.kind, found.state, found.cause) == ("overview", "well", "none")
    assert found.answer.endswith("All is well: smollm2 is loaded (444 MB reserved), and nothing is queued.")
    assert not found.also


def test_without_a_name_everything_that_is_not_well_is_told_with_the_name_to_ask_for(script: Any) -> None:
    script.add(InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="explicit"))
    failed = InstallAttemptFailed(
        job="mlx.1", backend="mlx", attempt=1, failure=OFFLINE, retry_at=script.now + 60
    )
    script.add(failed)
    script.add(PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"))
    script.add(PullFailed(job="pull.9", failure=OFFLINE))
    script.refuse("smollm2", "does_not_fit", "smollm2 needs 9 GB.")

    found = script.why("", live=live(queue=(entry(model_ref="docker.io/ai/poet:latest"),)))

    assert (found.state, found.numbers["troubles"]) == ("unwell", 4.0)
    assert "4 problems:" in found.answer
    told = "\n".join(found.also)
    for part in (
        f"- 1 request is queued. Request {REQUEST} to poet from curl (process 4711) is number 1 in the queue",
        "- mlx is not installed yet: retrying at ",
        "- smollm2 was refused at 12:00:07: smollm2 needs 9 GB.",
        "- The pull of gemma3 failed at 12:00:07: The index cannot be reached.",
    ):
        assert part in told
    commands = [one.command for one in found.remedies]
    assert commands == [f"greenroom why {one}" for one in ("queue", "mlx", "smollm2", "gemma3")]


@pytest.mark.parametrize(
    ("later", "troubles"),
    [("hf.co/org/gemma3:Q8_0", 0.0), ("hf.co/org/gemma3:latest", 0.0), ("hf.co/org/other:Q8_0", 1.0)],
)
def test_a_failed_pull_is_no_problem_once_its_repository_was_pulled(
    script: Any, later: str, troubles: float
) -> None:
    script.add(PullRequested(job="pull.8", reference="hf.co/org/gemma3:latest"))
    script.add(PullFailed(job="pull.8", failure=OFFLINE))
    assert script.why("", live=live()).numbers["troubles"] == 1.0
    script.add(PullRequested(job="pull.9", reference=later))
    model = Model(id=f"sha256:{'cd' * 32}", tags=(later,), format="gguf")
    script.add(ModelCommitted(job="pull.9", model=model, seconds=2.0))
    assert script.why("", live=live()).numbers["troubles"] == troubles


def test_a_daemon_that_was_killed_comes_first(script: Any) -> None:
    script.refuse("smollm2", "does_not_fit", "smollm2 needs 9 GB.")

    for name in ("", "daemon"):
        found = script.why(name, live=DOWN)
        assert found.cause == "killed"
        assert found.answer.startswith(
            "Greenroom is not running: process 100 was killed or crashed after 12:00:07 (just now), when it "
            "stored its last event."
        )
    assert "To start it: greenroom serve" in script.why("", live=DOWN).text(script.now, width=80).replace(
        "  ", ""
    )


def test_a_daemon_that_does_not_answer_says_so_in_its_place(script: Any) -> None:
    silence, advice = "The Greenroom daemon (process 100) is suspended.", "Resume it: kill -CONT 100"
    silent = Live(pid=100, silence=silence, advice=advice)
    found = script.why("daemon", live=silent)
    assert (found.state, found.answer, found.also[0]) == ("silent", silence, advice)
    assert script.why("", live=silent).also == (advice,)
    assert "Greenroom cannot say who waits" in script.why("queue", live=silent).answer


def test_what_keeps_a_daemon_from_starting_is_told_after_how_the_last_one_ended(script: Any) -> None:
    script.stopped()
    found = script.why("daemon", live=Live(running=False, silence="Port in use.", advice="Use another."))
    assert found.cause == "cannot_start"
    assert found.answer.endswith(" It cannot be started as it is: Port in use.")
    assert found.also[0] == "Use another."


def test_what_a_model_recovered_from_is_no_trouble(script: Any) -> None:
    script.refuse("smollm2", "does_not_fit", "smollm2 needs 9 GB.")
    script.evict(script.load(), "idle", idle_seconds=300.0)

    assert script.why("", live=live()).state == "well"


# queue, memory, requests


def test_the_queue_is_told_in_order(script: Any) -> None:
    second = entry(request_id="r-0a1b2c3d-8", place=2, message="waiting for memory, behind smollm2")
    script.model("poet")
    poet = script.load("poet")
    found = script.why("queue", live=live(account(poet), queue=(entry(), second)))

    assert (found.state, found.cause) == ("waiting", "waiting_for_memory")
    assert found.answer.startswith("2 requests are queued. Request r-0a1b2c3d-7 to smollm2")
    assert "is number 2 in the queue after 7s: waiting for memory, behind smollm2." in found.also[1]
    assert found.also[0] == "poet holds 444 MB."
    assert script.why("queue", live=live()).answer == "No request is queued."


def test_a_copied_journal_says_what_it_cannot_know(script: Any) -> None:
    script.load()

    assert script.why("queue").answer == (
        "The journal does not say who waits: only its running daemon knows."
    )
    memory = script.why("memory")
    assert memory.answer.startswith(
        "444 MB of 8.00 GB was reserved for 1 engine when the last event was stored."
    )
    assert memory.answer.endswith("The journal does not say what is free: only its running daemon knows.")


def test_memory_names_who_holds_it_and_who_takes_more(script: Any) -> None:
    engine = script.load()
    over = account(engine, measured=500_000_000, inside=2, keep_alive=-1.0)

    found = script.why("memory", live=live(over))

    assert found.answer.startswith("444 MB of 8.00 GB is reserved for 1 engine, and 7.56 GB is free")
    holds = f"smollm2 holds 444 MB, uses 500 MB, pinned, 2 requests inside (engine {engine})."
    assert found.also == (f"{holds} It uses more than is reserved.",)
    assert "smollm2 uses 500 MB and has only 444 MB reserved." in script.why("", live=live(over)).also[0]


def test_requests_are_counted_by_their_end_and_their_reason(script: Any) -> None:
    now = script.now
    rows = [
        inside("e", 1, at=now - 60, outcome="whole"),
        inside("e", 2, at=now - 50, outcome="refused", status=404, code="model_not_found", sentence="None."),
        inside("e", 3, at=now - 40, outcome="left"),
        inside("e", 5, at=now - 30, outcome="refused", status=200, code="unreachable", sentence="None."),
        inside("e", 4, at=now - 200_000, outcome="died", caller="judge"),
    ]
    found = script.why("requests", rows=lambda: rows)

    assert "Of 4 requests since" in found.answer
    assert found.answer.endswith("1 was answered, 2 were refused and 1 lost its client.")
    assert found.also[0].startswith("model_not_found (404): 1 time, last at")
    assert found.also[1].startswith("unreachable: 1 time, last at")
    one = script.why("judge", rows=lambda: rows)
    assert (one.kind, one.id) == ("client", "judge")
    assert one.answer.startswith("No request from judge has arrived since")
    assert script.why("curl", rows=lambda: rows).kind == "client"


# what only a running daemon knows


@pytest.mark.parametrize("name", ["docker.io/ai/smollm2:latest", "smollm2", "ai/smollm2"])
def test_a_model_that_waits_is_queued_whatever_happened_before(script: Any, name: str) -> None:
    script.refuse("smollm2", "does_not_fit", "smollm2 needs 9 GB.")
    script.model("poet")
    poet = script.load("poet")

    now = live(account(poet), queue=(entry(model_ref=name),), requests=(inside(poet, 3),))
    found = script.why("smollm2", live=now)

    assert (found.state, found.cause) == ("queued", "waiting_for_memory")
    assert found.answer == (
        f"smollm2 is not loaded yet. Request {REQUEST} to smollm2 from curl (process 4711) is number 1 "
        "in the queue after 7s: waiting for memory: it needs 303 MB, 250 MB is free."
    )
    assert found.also[0] == "poet holds 444 MB and answers r-0a1b2c3d-3."
    assert found.also[1].startswith("Before that: smollm2 is not loaded: ")


@pytest.mark.parametrize("kind", ["model", "engine"])
def test_who_is_inside_and_how_fast_is_told(script: Any, kind: str) -> None:
    engine = script.load()
    rows = tuple(inside(engine, number) for number in range(1, 7))
    busy = live(account(engine, inside=4, queue=2), requests=rows)

    found = script.why("smollm2" if kind == "model" else engine, live=busy)

    told = "is answering 4 requests in 4 slots, 2 requests queued for it, 8.0 tokens a second each."
    if kind == "model":
        # That explains how slow it is: it comes first.
        assert found.answer == f"smollm2 {told}"
        assert found.also[0].startswith("smollm2 is loaded: ")
    else:
        assert found.also[0] == f"It {told}"
    assert found.also[1].startswith("Inside: r-0a1b2c3d-1 from curl (process 4711) for 12s, 96 tokens; ")
    assert found.also[1].endswith(", and 2 more.")
    assert found.numbers["tokens_per_second"] == 8.0


def test_a_model_that_is_loading_is_so_whoever_waits_for_it(script: Any) -> None:
    engine = script.admit()
    found = script.why("smollm2", live=live(account(engine, queue=2), queue=(entry(),)))
    assert found.answer.startswith("smollm2 has been loading on llama.cpp since ")


def test_a_backend_says_which_models_are_answering(script: Any) -> None:
    engine = script.load()
    found = script.why("llama.cpp", live=live(account(engine, inside=1), requests=(inside(engine, 3),)))
    assert found.also[:2] == (
        "smollm2 is answering 1 request in 4 slots, 8.0 tokens a second.",
        f"It serves smollm2 (engine {engine}).",
    )


def test_an_idle_engine_says_when_it_will_be_unloaded(script: Any) -> None:
    engine = script.load()
    found = script.why("smollm2", live=live(account(engine, idle_seconds=100.0, expires_in=200.0)))
    assert found.also[0] == "It has been idle for 1m40s and will be unloaded in 3m20s without a request."


def test_bytes_so_far_are_told_of_pulls_and_installations(script: Any) -> None:
    script.add(PullRequested(job="pull.9", reference="docker.io/ai/gemma3:latest"))
    script.add(InstallRequested(job="mlx.1", backend="mlx", version="", wanted_by="explicit"))
    jobs = {
        "pull/docker.io/ai/gemma3:latest": "Downloading 7.2 MB of 93 MB",
        "install/mlx": "Downloading 30 MB of 212 MB",
    }
    now = live(jobs=jobs)

    assert script.why("gemma3", live=now).also[0] == "Its pull: Downloading 7.2 MB of 93 MB."
    assert script.why("pull.9", live=now).also[0] == "Downloading 7.2 MB of 93 MB."
    assert script.why("mlx", live=now).also[0] == "Its installation: Downloading 30 MB of 212 MB."
    assert script.why("mlx.1", live=now).also[0] == "Downloading 30 MB of 212 MB."


def test_a_request_tells_its_place(script: Any) -> None:
    row = inside("", 7, seconds=7.0)
    found = script.why(REQUEST, recorded={REQUEST: row}.get, live=live(queue=(entry(),), requests=(row,)))
    assert found.answer.startswith(
        f"Request {REQUEST} to smollm2 from curl (process 4711) is number 1 in the queue"
    )
    assert found.numbers["place"] == 1.0


def test_what_a_daemon_says_survives_the_way_over_http() -> None:
    ledger = live(account("e-1"), queue=(entry(),)).ledger
    assert msgspec.convert(msgspec.to_builtins(ledger), LedgerReading) == ledger


def test_a_model_that_is_to_be_loaded_at_the_start_and_is_not_here_is_a_problem(script: Any) -> None:
    script.model()
    warm = SettingInForce(name="warm", value="smolm2, smollm2, tiny", origin="config.toml")
    script.add(DaemonStarted(pid=100, version="0.1.0", platform="Linux", settings=(warm,)))
    found = script.why("", live=live())
    start = "which is to be loaded whenever the daemon starts (warm, config.toml), is not in the store."
    assert found.also == (
        f"- smolm2, {start} Did you mean smollm2?",
        f"- tiny, {start} To pull it: greenroom pull tiny",
    )
