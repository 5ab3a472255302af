"""Several clients at once on real engines with default settings: no client loses its answer to another."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

CONTEXT = 256
"""The least that llama.cpp has. Four answers that fit alone are together far more than one context."""
TOKENS = 70


def together(daemon: Any, model: str, clients: int, tokens: int, path: str = "/v1/completions") -> list[Any]:
    """The answers of so many clients, asked at the same time."""
    answers: list[Any] = []

    def one(number: int) -> None:
        body = {"model": model, "prompt": f"Story {number}: once", "max_tokens": tokens, "ignore_eos": True}
        answers.append(daemon.post(path, body))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def lengths(answers: list[Any]) -> list[int]:
    assert [one.status for one in answers] == [200] * len(answers), [one.body[:200] for one in answers]
    return [one.json["usage"]["completion_tokens"] for one in answers]


def test_long_answers_of_several_clients_each_have_a_context_of_their_own_on_llama_cpp(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    daemon = make_daemon(furnished).start()
    daemon.bound = 500.0
    model = str(smollm2_gguf)
    assert daemon.post("/engines/_configure", {"model": model, "context-size": CONTEXT}).status == 202
    assert lengths(together(daemon, model, 5, TOKENS)) == [TOKENS] * 5
    (engine,) = [one for one in daemon.engines() if one["state"] == "ready"]
    assert (engine["slots"], engine["context_size"]) == (4, CONTEXT)
    # The reservation is a bound: the engine was started with it.
    (started,) = [event for record, event in daemon.events("load_admitted")][-1:]
    # Every request names its slot, so memory for prompts that have left theirs would be of no use.
    assert started["spec"]["prompt_cache"] == engine["prompt_cache"] == 0
    assert daemon.events("load_failed") == []


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_is_the_clients_mistake_and_costs_no_neighbour_on_mlx(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_mlx: Path
) -> None:
    daemon = make_daemon(furnished).start()
    daemon.bound = 500.0
    model = str(smollm2_mlx)
    assert daemon.post("/engines/_configure", {"model": model, "context-size": 64}).status == 202
    long: list[Any] = []
    asking = threading.Thread(
        target=lambda: long.append(
            daemon.post("/v1/completions", {"model": model, "prompt": "word " * 200, "max_tokens": 8})
        )
    )
    asking.start()
    answers = together(daemon, model, 5, 12)
    asking.join()
    assert [one.status for one in answers] == [200] * 5, [one.body[:200] for one in answers]
    assert long[0].status == 400
    assert json.loads(long[0].body)["error"]["code"] == "context_length_exceeded"
    (engine,) = [one for one in daemon.engines() if one["state"] == "ready"]
    assert (engine["slots"], engine["context_size"]) == (4, 64)
    # An answer ends where its context does.
    cut = daemon.post("/v1/completions", {"model": model, "prompt": "Once", "max_tokens": 500})
    assert cut.json["usage"]["total_tokens"] <= 64
