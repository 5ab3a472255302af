"""llama-server's routes, names and metrics with the real model, on llama.cpp and mlx."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("backend", ["llama.cpp", pytest.param("mlx", marks=pytest.mark.slow)])
def test_a_real_engine_tokenizes_and_answers_under_every_name(
    furnished: Path,
    make_daemon: Callable[..., Any],
    smollm2_gguf: Path,
    smollm2_mlx: Path,
    backend: str,
) -> None:
    daemon = make_daemon(furnished).start()
    is_llama = backend == "llama.cpp"
    source = str(smollm2_gguf if is_llama else smollm2_mlx)
    assert daemon.post("/api/copy", {"source": source, "destination": "mine"}).status == 200

    # tokens
    text = {"model": "mine", "content": "Hello world"}
    tokens = daemon.post("/tokenize", text).json["tokens"]
    assert tokens == [19556, 905]
    pieces = daemon.post("/tokenize", {**text, "with_pieces": True}).json["tokens"]
    assert pieces == [{"id": 19556, "piece": "Hello"}, {"id": 905, "piece": " world"}]
    assert daemon.post("/detokenize", {"model": "mine", "tokens": tokens}).json == {"content": "Hello world"}
    chat = {"model": "mine", "messages": [{**HI[0], "content": [{"type": "text", "text": "hi"}]}]}
    prompt = daemon.post("/apply-template", chat).json["prompt"]
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    wrong = daemon.post("/detokenize", {"model": "mine", "tokens": [99_999_999]})
    assert (wrong.status, wrong.json["error"]["code"]) == (400, "invalid_value")
    refused = daemon.post("/infill", {"model": "mine", "input_prefix": "def f(", "input_suffix": "):"})
    expected = (422, "no_infill") if is_llama else (404, "not_offered")
    assert (refused.status, refused.json["error"]["code"]) == expected
    props = daemon.get("/props?model=mine").json
    assert (props["model_path"], "<|im_start|>" in props["chat_template"]) == ("mine", True)

    # answers carry the name that was asked for, not the one that the engine was loaded under
    assert "docker.io/ai/mine:latest" in [one["id"] for one in daemon.get("/v1/models").json["data"]]
    name = "docker.io/ai/mine"
    for path, body in (
        ("/v1/chat/completions", {"messages": HI}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/messages", {"messages": HI}),
    ):
        asked = {**body, "model": name, "max_tokens": 2}
        assert daemon.post(path, asked).json["model"] == name, path
        streamed = daemon.post(path, {**asked, "stream": True}).body.decode()
        said = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        found = {one.get("model") or one.get("message", {}).get("model") for one in said}
        assert found - {None} == {name}, path
    assert len([one for one in daemon.engines() if one["state"] == "ready"]) == 1

    labels = '{backend="llama.cpp",model="mine",mode="completion"}'
    numbers = daemon.get("/metrics").body.decode()
    assert (
        f"llamacpp:prompt_tokens_total{labels}" in numbers if is_llama else numbers == "# No active runners\n"
    )
    logs = daemon.get("/logs?tail=5").body.decode()
    assert logs.startswith("==> daemon <==\n")
    assert f"==> {backend} " in logs
