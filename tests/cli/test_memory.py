"""Who holds memory, what waits, and how fast a model answers, from a daemon that is only HTTP."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

ENGINE = {
    "engine_id": "e-1",
    "model_name": "docker.io/ai/smollm2:latest",
    "backend_name": "llama.cpp",
    "state": "ready",
    "memory": 1_230_000_000,
    "measured": 916_000_000,
    "expires_in": 220.0,
    "promises": [
        {
            "weights": 98_000_000,
            "cache": 190_000_000,
            "slots": 4,
            "prompt_cache": 377_000_000,
            "compute": 157_000_000,
            "learned": -157_000_000,
            "total": 1_230_000_000,
        },
    ],
}
LEDGER = {
    "budget": 22_000_000_000,
    "promised": 1_230_000_000,
    "free": 19_000_000_000,
    "waiting": 1,
    "engines": [{"engine_id": "e-1", "promised": 1_230_000_000}],
    "devices": [
        {"name": "RTX", "total": 24 * 10**9, "budget": 23 * 10**9, "promised": 10**9, "free": 22 * 10**9}
    ],
}


def test_memory_says_who_holds_how_much_of_it_and_for_what(greenroom: Any, our_daemon: Any) -> None:
    our_daemon.routes["GET /engines/ledger"] = LEDGER
    our_daemon.routes["GET /engines/ps"] = [ENGINE]

    lines = greenroom("memory").out.splitlines()

    assert lines[0] == "Engines may use 22.0 GB of memory: 1.23 GB reserved, 19.0 GB free now."
    cells = [re.split("  +", line) for line in lines[1:3]]
    assert dict(zip(*cells, strict=True)) == {
        "MODEL NAME": "smollm2",
        "BACKEND": "llama.cpp",
        "RESERVED": "1.23 GB",
        "USED": "916 MB",
        "WEIGHTS": "98.0 MB",
        "CONTEXT": "760 MB",
        "PROMPTS": "377 MB",
        "OTHER": "0 B",
        "UNTIL": "3m40s",
    }
    assert "RTX" in lines[5]
    assert lines[6] == "1 request is queued. See: greenroom queue"
    shown = json.loads(greenroom("memory", "--json").out)
    assert shown["engines"][0]["model"] == "docker.io/ai/smollm2:latest"
    assert shown["engines"][0]["parts"] == ENGINE["promises"]
    assert greenroom("ledger").out.splitlines() == lines


def test_the_queue_says_what_each_request_waits_for(greenroom: Any, our_daemon: Any) -> None:
    entry = {
        "request_id": "r-1",
        "model_ref": "docker.io/ai/smollm2:latest",
        "place": 1,
        "message": "waiting for memory",
        "progress": "",
        "waited": 3.2,
        "left": 297.0,
        "caller": "process 7",
    }
    our_daemon.routes["GET /engines/queue"] = [entry]

    heading, row = greenroom("queue").out.splitlines()

    assert heading.split() == [
        "PLACE",
        "MODEL",
        "NAME",
        "WAITED",
        "LEFT",
        "CALLER",
        "REQUEST",
        "WAITS",
        "FOR",
    ]
    assert row.split("  ")[0] == "1"
    assert row.endswith("smollm2     3s      4m57s  process 7  r-1      waiting for memory")
    assert json.loads(greenroom("queue", "--json").out) == [entry]
    our_daemon.routes["GET /engines/queue"] = []
    assert greenroom("queue").out == "No request is queued.\n"


def test_bench_asks_so_many_at_once_and_never_the_same(greenroom: Any, our_daemon: Any) -> None:
    together = threading.Barrier(2)
    asked: list[Any] = []

    def answer(seen: Any) -> Any:
        if seen.headers.get("X-Preload-Only") == "true":
            return ""
        asked.append(seen.body)
        if len(asked) > 2:
            together.wait(30)  # both of the second level are inside
        delta = {"choices": [{"delta": {"content": "word"}}]}
        usage = {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 8}}
        return [f"data: {json.dumps(delta)}", "", f"data: {json.dumps(usage)}", "", "data: [DONE]", ""]

    our_daemon.routes["POST /v1/chat/completions"] = answer
    flags = ["--streams", "1,2", "--tokens", "8", "--json", "--no-bare"]

    shown = json.loads(greenroom("bench", "smollm2", *flags).out)

    assert [(one["streams"], one["answer_tokens"]) for one in shown["levels"]] == [(1, 8), (2, 16)]
    assert all(one["tokens_per_second"] > 0 and one["prompt_tokens"] == 40 for one in shown["levels"])
    prompts = [body["messages"][0]["content"] for body in asked]
    assert len(set(prompts)) == len(asked) == 4
    assert [body["max_tokens"] for body in asked] == [2, 8, 8, 8]


def test_bench_asks_the_engine_itself_too_and_tells_the_ratio(
    greenroom: Any, our_daemon: Any, listening: Any, home: Path, short_path: Path
) -> None:
    def answer(seen: Any) -> Any:
        usage = {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 8}}
        delta = {"choices": [{"delta": {"content": "word"}}]}
        return [f"data: {json.dumps(delta)}", "", f"data: {json.dumps(usage)}", "", "data: [DONE]", ""]

    our_daemon.routes |= {
        "POST /v1/chat/completions": answer,
        "GET /models/smollm2": {"id": "sha256:1"},
        "GET /engines/ps": [{"engine_id": "e1"}, {"engine_id": "gone"}],
    }
    engine = type(our_daemon)(routes={"POST /v1/chat/completions": answer})
    socket = short_path / "engine.sock"
    about = {"spec": {"model_id": "sha256:1", "backend": "llama.cpp"}, "model_name": "as-loaded"}
    claim = home / "engines" / "e1" / "claim"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps({"engine_socket": str(socket), "about": about}))
    with listening(engine, socket):
        shown = greenroom("bench", "smollm2", "--streams", "1", "--tokens", "8", "--json")
        table = greenroom("bench", "smollm2", "--streams", "1", "--tokens", "8")
    (level,) = json.loads(shown.out)["levels"]
    assert level["bare"]["answer_tokens"] == level["answer_tokens"] == 8
    assert level["throughput_ratio"] > 0
    assert level["first_token_added"] == round(level["first_token"] - level["bare"]["first_token"], 4)
    assert {one.body["model"] for one in engine.seen} == {"as-loaded"}
    assert table.out.splitlines()[0].split()[:5] == ["STREAMS", "TOKENS/S", "ENGINE", "ALONE", "RATIO"]
    claim.unlink()
    alone = greenroom("bench", "smollm2", "--streams", "1", "--tokens", "8")
    assert (alone.code, "The engine itself is not measured" in alone.err) == (0, True)


@pytest.mark.parametrize("streams", ["0", "1,x", "", "1000"])
def test_a_wrong_number_of_streams_is_a_usage_error(greenroom: Any, our_daemon: Any, streams: str) -> None:
    assert greenroom("bench", "smollm2", "--streams", streams).code == 2
    assert our_daemon.seen == []


def test_a_refusal_ends_the_measurement(greenroom: Any, our_daemon: Any) -> None:
    def answer(seen: Any) -> Any:
        if seen.headers.get("X-Preload-Only") == "true":
            return ""
        return 503, {"error": {"message": "The queue is full.", "code": "queue_full"}}

    our_daemon.routes["POST /v1/chat/completions"] = answer

    outcome = greenroom("bench", "smollm2")

    assert (outcome.code, outcome.out) == (1, "")
    assert "The queue is full." in outcome.err
