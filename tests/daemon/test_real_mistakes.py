"""Clients' mistakes and clients that leave, on real engines: one status and code for one mistake, and no
engine works for a client that has left."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from short_prompt import SHORT_PROMPT
from tiny_vision import base64_png
from waiting import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
HELLO = [SHORT_PROMPT, {"role": "user", "content": "Name a colour."}]
TOOL = {"type": "function", "function": {"name": "w", "description": None, "parameters": None}}
CALL = {"id": "1", "type": "function", "function": {"name": "w", "arguments": "{broken"}}
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64_png()}"}}
MISTAKES: dict[str, tuple[str, Any]] = {
    "an unknown role": (CHAT, {"messages": [{"role": "robot", "content": "x"}]}),
    "no messages": (CHAT, {"messages": []}),
    "an image": (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}),
    "broken arguments": (CHAT, {"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL]}]}),
    "an unknown tool": (CHAT, {"messages": HELLO, "tools": [{"type": "custom", "custom": {}}]}),
    "an unknown choice": (CHAT, {"messages": HELLO, "tools": [TOOL], "tool_choice": "sometimes"}),
    "an unknown format": (CHAT, {"messages": HELLO, "response_format": {"type": "yaml"}}),
    "no tokens": (CHAT, {"messages": HELLO, "max_tokens": 0}),
    "a hot temperature": (CHAT, {"messages": HELLO, "temperature": 9}),
    "text for a number": (CHAT, {"messages": HELLO, "top_p": "x"}),
    "no prompt": (COMPLETE, {}),
    "too many tokens": (COMPLETE, {"prompt": [1] * 9000}),
}

SCHEMAS: dict[str, Any] = {
    "a type that JSON has not": {"type": "banana"},
    "a reference to nothing": {"properties": {"a": {"$ref": "#/$defs/absent"}}},
}


def told(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json["error"]
    assert isinstance(error["code"], str)
    return answer.status, error["code"], error["param"]


@pytest.mark.slow
def test_one_mistake_has_one_status_and_code_on_both_engines_cold_and_warm(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path, smollm2_mlx: Path
) -> None:
    daemon = make_daemon(furnished).start()
    models = (str(smollm2_gguf), str(smollm2_mlx))

    def told_of(model: str, path: str, fields: dict[str, Any]) -> tuple[int, str, str | None]:
        return told(daemon.post(path, {"model": model, **fields}))

    def all_told() -> list[dict[str, Any]]:
        return [{name: told_of(model, *asked) for name, asked in MISTAKES.items()} for model in models]

    cold = all_told()
    assert cold[0] == cold[1]
    assert daemon.engines() == [], "none of them needs an engine to be seen"
    for model, more in zip(models, ({"tools": [TOOL]}, {}), strict=True):  # mlx reads a tool for seconds
        answer = daemon.post(CHAT, {"model": model, "messages": HELLO, "max_tokens": 2, **more})
        assert answer.status == 200, answer.body
    assert all_told() == cold
    for schema in SCHEMAS.values():
        named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        asked = {"messages": HELLO, "response_format": named, "max_tokens": 2}
        assert [told_of(model, CHAT, asked) for model in models] == [(400, "invalid_schema", None)] * 2
    for model in models:
        schema = {"type": "json_object", "schema": {"enum": ["red", "green"]}}
        answer = daemon.post(
            CHAT, {"model": model, "messages": HELLO, "response_format": schema, "temperature": 2}
        )
        assert json.loads(answer.json["choices"][0]["message"]["content"]) in ("red", "green")

    # Tokens that the model does not have end no engine.
    mlx = models[1]
    assert daemon.chat(mlx, top_k=10**9, temperature=1, max_tokens=2).status == 200
    answer = daemon.chat(mlx, logit_bias={"999999999": 1}, max_tokens=2)
    assert told(answer) == (400, "invalid_value", "logit_bias")
    assert daemon.chat(mlx, logit_bias={"5": -100}, seed=7, max_tokens=2).status == 200
    assert len(daemon.events("engine_spawned")) == len(models)


@pytest.mark.parametrize("engine", ["llama.cpp", pytest.param("mlx", marks=pytest.mark.slow)])
def test_a_prompt_that_is_too_long_gets_the_same_error_cold_streamed_and_warm(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path, smollm2_mlx: Path, engine: str
) -> None:
    daemon = make_daemon(furnished, GREENROOM_PROGRESS_AFTER="0.05").start()
    model = str(smollm2_gguf if engine == "llama.cpp" else smollm2_mlx)
    long = {"model": model, "messages": [{"role": "user", "content": "word " * 9000}]}
    cold = daemon.post(CHAT, {**long, "stream": True})
    assert (cold.status, cold.body[:2]) == (200, b": ")
    (event,) = [line for line in cold.body.decode().splitlines() if line.startswith("data: ")]
    error = json.loads(event.removeprefix("data: "))["error"]
    warm = daemon.post(CHAT, long)
    assert (warm.status, warm.json["error"]) == (400, error)
    assert error["code"] == "context_length_exceeded"
    assert error["n_prompt_tokens"] > 9000
    assert error["n_ctx"] < 9000


@pytest.mark.parametrize("engine", ["llama.cpp", pytest.param("mlx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stream", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_client_that_leaves_ends_its_generation_and_counts_as_inside_until_the_engine_is_idle(
    furnished: Path,
    make_daemon: Callable[..., Any],
    smollm2_gguf: Path,
    smollm2_mlx: Path,
    engine: str,
    stream: bool,
) -> None:
    daemon = make_daemon(furnished).start()
    model = str(smollm2_gguf if engine == "llama.cpp" else smollm2_mlx)
    assert daemon.chat(model, max_tokens=1).status == 200
    (row,) = daemon.engines()
    process = psutil.Process(row["pid"])
    generating = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 6000, "ignore_eos": True}
    reading = {"messages": [{"role": "user", "content": "a word and " * 2400}], "max_tokens": 1}
    for fields in (generating, reading):
        client = _ask(daemon.url, {"model": model, "stream": stream, **fields})
        until(lambda: daemon.engines()[0]["inside"] == 1)
        worked = _seconds(process) + 0.5
        until(partial(_has_worked, process, worked))
        client.close()
        until(lambda: daemon.engines()[0]["inside"] == 0, 20)
        before = _seconds(process)
        time.sleep(1.0)
        assert _seconds(process) - before < 0.4, "it works on, although no request is inside"
    assert daemon.engines()[0]["pid"] == row["pid"]
    assert daemon.chat(model, max_tokens=2).status == 200


def _ask(url: str, body: dict[str, Any]) -> socket.socket:
    address = urlsplit(url)
    client = socket.create_connection((address.hostname, address.port), timeout=30)
    data = json.dumps(body).encode()
    client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode())
    client.sendall(data)
    return client


def _has_worked(process: psutil.Process, seconds: float) -> bool:
    return _seconds(process) > seconds


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
