"""The scheduler and the engines on llama.cpp itself: modes, context, adoption, one that stops computing."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from waiting import suspend, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture
def model(smollm2_gguf: Path) -> str:
    return str(smollm2_gguf)


def props(daemon: Any, engine: Any) -> Any:
    """What llama-server says of itself, on its own socket."""
    claim = json.loads((daemon.home / "engines" / engine["engine_id"] / "claim").read_text())
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(claim["engine_socket"])
    connection.request("GET", "/props")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def loaded(daemon: Any, mode: str = "completion") -> Any:
    rows = [row for row in daemon.engines() if row["mode"] == mode and row["state"] == "ready"]
    return rows[0] if rows else None


@pytest.mark.slow
def test_embeddings_and_reranking_each_have_an_engine_of_their_own(
    furnished: Path, make_daemon: Callable[..., Any], model: str
) -> None:
    daemon = make_daemon(furnished).start()
    # The model is made for chats, so each has to be configured.
    for mode, flags in (("embedding", ["--embeddings", "--pooling", "mean"]), ("reranking", ["--reranking"])):
        configured = daemon.post(
            "/engines/_configure",
            # A batch is as long as the context, and has a number for each token of the vocabulary.
            {"model": model, "mode": mode, "runtime-flags": flags, "context-size": 1024},
        )
        assert configured.status == 202, configured.body
    answer = daemon.post("/v1/embeddings", {"model": model, "input": ["the sea", "the sky"]})
    assert answer.status == 200, answer.body
    assert [len(one["embedding"]) for one in answer.json["data"]] == [576, 576]
    longer = daemon.post("/v1/embeddings", {"model": model, "input": "sea " * 1000})
    assert longer.status == 200, "longer than the engine's own batches"
    ranked = daemon.post("/rerank", {"model": model, "query": "sea", "documents": ["water", "fire", "salt"]})
    assert ranked.status == 200, ranked.body
    assert len(ranked.json["results"]) == 3
    assert daemon.chat(model).status == 200
    until(lambda: {row["mode"] for row in daemon.engines()} >= {"completion", "embedding", "reranking"})


@pytest.mark.slow
def test_the_context_is_the_one_that_memory_was_reserved_for(
    furnished: Path, make_daemon: Callable[..., Any], model: str
) -> None:
    daemon = make_daemon(furnished).start()
    assert daemon.chat(model).status == 200
    first = loaded(daemon)
    assert props(daemon, first)["default_generation_settings"]["n_ctx"] == 8192
    assert daemon.post("/engines/_configure", {"model": model, "context-size": 1024}).status == 202
    small = until(lambda: (row := loaded(daemon)) and row["engine_id"] != first["engine_id"] and row)
    assert props(daemon, small)["default_generation_settings"]["n_ctx"] == 1024
    assert small["memory"] < first["memory"]
    # What it really uses is measured, and shown: what the system says, give or take.
    in_memory = psutil.Process(small["pid"]).memory_info
    until(lambda: abs(((loaded(daemon) or {}).get("measured") or 0) / in_memory().rss - 1) < 0.2)
    # A restart forgets none of it.
    daemon.restart()
    assert daemon.chat(model).status == 200
    assert props(daemon, loaded(daemon))["default_generation_settings"]["n_ctx"] == 1024


def test_the_engine_of_a_daemon_that_is_killed_or_keeps_it_serves_the_next_one_without_a_reload(
    furnished: Path, make_daemon: Callable[..., Any], model: str
) -> None:
    daemon = make_daemon(furnished).start()
    assert daemon.chat(model).status == 200
    engine = loaded(daemon)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Count to a thousand."}],
        "stream": True,
        "max_tokens": 4000,
        "ignore_eos": True,
    }
    request = urllib.request.Request(f"{daemon.url}/v1/chat/completions", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as stream:
        while not stream.readline().startswith(b"data: "):
            pass
        daemon.kill()
    daemon.start()
    assert daemon.chat(model).status == 200
    assert loaded(daemon)["pid"] == engine["pid"]

    stopped = daemon.run("stop", "--keep-engines=1m")
    assert stopped.returncode == 0, stopped.stderr
    assert "its engines keep running for 1m" in stopped.stdout
    until(lambda: daemon.process.poll() is not None)
    daemon.start()
    assert daemon.chat(model).status == 200
    assert loaded(daemon)["pid"] == engine["pid"]
    assert len(daemon.events("engine_adopted")) == 2
    assert len(daemon.events("engine_spawned")) == len(daemon.events("load_admitted")) == 1


@pytest.mark.slow
def test_an_engine_that_stops_computing_is_replaced_during_the_request(
    furnished: Path, make_daemon: Callable[..., Any], model: str
) -> None:
    daemon = make_daemon(furnished, GREENROOM_STALL_AFTER="2").start()
    assert daemon.chat(model).status == 200
    engine = loaded(daemon)
    suspend(engine["pid"])
    answer = daemon.chat(model)
    assert answer.status == 200, answer.body
    assert loaded(daemon)["pid"] != engine["pid"]
    (stop,) = [fields for _, fields in daemon.events("engine_stop_requested") if fields.get("fault")]
    assert "stopped by a signal" in stop["reason"]


@pytest.mark.slow
def test_a_prefill_that_takes_far_longer_than_silence_may_is_never_ended(
    furnished: Path, make_daemon: Callable[..., Any], model: str
) -> None:
    daemon = make_daemon(furnished, GREENROOM_STALL_AFTER="1").start()
    assert daemon.chat(model).status == 200
    engine = loaded(daemon)
    answer = daemon.chat(model, "The sea is wide and deep and full of fish. " * 100, max_tokens=1)
    assert answer.status == 200, answer.body
    assert answer.json["usage"]["prompt_tokens"] > 900
    assert loaded(daemon)["pid"] == engine["pid"]
    assert not daemon.events("engine_stop_requested")
