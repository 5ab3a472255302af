"""Two real models that do not fit side by side, and clients of both at the same time."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

BUDGET = "700MB"
"""More than either needs with one slot, and less than both do."""
ROUNDS, CLIENTS, TOKENS = 4, 4, 24


def test_two_models_evict_each_other_and_no_answer_is_lost(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path, gemma3_gguf: Path
) -> None:
    daemon = make_daemon(furnished, GREENROOM_MEMORY_BUDGET=BUDGET).start()
    daemon.bound = 600.0
    daemon.pull(str(gemma3_gguf))
    one_thread = {"model": str(gemma3_gguf), "runtime-flags": ["--threads", "1"]}
    assert daemon.post("/engines/_configure", one_thread).status == 202
    models = (str(smollm2_gguf), str(gemma3_gguf))
    lost: list[str] = []
    answered: list[str] = []

    def ask(client: int) -> None:
        for number in range(ROUNDS):
            model = models[(client + number) % 2]
            body = {"model": model, "prompt": f"{number}, {client}: the sea", "max_tokens": TOKENS}
            body |= {"ignore_eos": True, "stream": client < 2}
            said = _streamed(daemon.url, body) if body["stream"] else _whole(daemon, body)
            (answered if said == TOKENS else lost).append(f"{model} {number} {client}: {said}")

    clients = [threading.Thread(target=ask, args=(client,), daemon=True) for client in range(CLIENTS)]
    for one in clients:
        one.start()
    for one in clients:
        one.join(600)
    assert not any(one.is_alive() for one in clients)
    assert not lost
    assert len(answered) == ROUNDS * len(clients)
    victims = {fields["engine_id"] for _, fields in daemon.events("eviction_decided")}
    specs = {fields["spec"]["engine_id"]: fields["spec"] for _, fields in daemon.events("load_admitted")}
    assert {specs[one]["model_id"] for one in victims} == {one["model_id"] for one in specs.values()}
    assert not daemon.events("load_failed")
    budget = 700 * 10**6
    assert all(one["memory"] < budget for one in specs.values())
    assert sum(one["memory"] for one in list(specs.values())[:2]) > budget, "they would fit side by side"


def _whole(daemon: Any, body: dict[str, Any]) -> Any:
    answer = daemon.post("/v1/completions", body)
    return answer.json["usage"]["completion_tokens"] if answer.status == 200 else answer.body


def _streamed(url: str, body: dict[str, Any]) -> Any:
    """How many tokens a stream that ended as it should has brought, else what it brought."""
    body = {**body, "stream_options": {"include_usage": True}}
    request = urllib.request.Request(f"{url}/v1/completions", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=600) as stream:
        lines = [line[6:].strip() for line in stream if line.startswith(b"data: ")]
    if not lines or lines[-1] != b"[DONE]":
        return lines
    (usage,) = [one["usage"] for line in lines[:-1] if (one := json.loads(line)).get("usage")]
    return usage["completion_tokens"]
