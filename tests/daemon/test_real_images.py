"""An image passes through the real engine in every family, and is as many tokens as its projector makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from short_prompt import SHORT_PROMPT
from tiny_vision import TOKENS, base64_png, projector

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

IMAGE = base64_png()
URL = f"data:image/png;base64,{IMAGE}"
ASKED = "What is this?"


@pytest.fixture
def seeing_smollm2(tmp_path: Path, smollm2_gguf: Path) -> Path:
    """The real model in a folder with a projector of random weights."""
    folder = tmp_path / "seeing"
    folder.mkdir()
    (folder / smollm2_gguf.name).write_bytes(smollm2_gguf.read_bytes())
    (folder / "mmproj-f16.gguf").write_bytes(projector())
    return folder


def test_an_image_is_as_many_tokens_as_its_projector_makes_of_it_in_every_family(
    furnished: Path, make_daemon: Callable[..., Any], seeing_smollm2: Path
) -> None:
    daemon = make_daemon(furnished).start()
    daemon.pull(str(seeing_smollm2))
    (model,) = (one["id"] for one in daemon.get("/models").json if "seeing" in str(one.get("tags")))
    daemon.configure(model)

    def tokens(path: str, fields: dict[str, Any], *counter: str) -> int:
        answer = daemon.post(path, {"model": model, "stream": False, **fields})
        assert answer.status == 200, answer.body
        found = answer.json
        for name in counter:
            found = found[name]
        return int(found)

    def chat(*parts: dict[str, Any]) -> int:
        content = [{"type": "text", "text": ASKED}, *parts]
        fields = {"messages": [SHORT_PROMPT, {"role": "user", "content": content}], "max_tokens": 1}
        return tokens("/v1/chat/completions", fields, "usage", "prompt_tokens")

    def responses(*parts: dict[str, Any]) -> int:
        content = [{"type": "input_text", "text": ASKED}, *parts]
        fields = {"input": [{"role": "user", "content": content}], "instructions": "x", "store": False}
        return tokens("/v1/responses", {**fields, "max_output_tokens": 1}, "usage", "input_tokens")

    def messages(*parts: dict[str, Any]) -> int:
        content = [{"type": "text", "text": ASKED}, *parts]
        fields = {"messages": [{"role": "user", "content": content}], "system": "x", "max_tokens": 1}
        cached = daemon.post("/v1/messages", {"model": model, **fields})
        assert cached.status == 200, cached.body
        usage = cached.json["usage"]
        return int(usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0))

    def ollama(**more: Any) -> int:
        fields = {"messages": [SHORT_PROMPT, {"role": "user", "content": ASKED, **more}]}
        return tokens("/api/chat", {**fields, "options": {"num_predict": 1}}, "prompt_eval_count")

    assert chat({"type": "image_url", "image_url": {"url": URL}}) - chat() == TOKENS
    assert responses({"type": "input_image", "image_url": URL}) - responses() == TOKENS
    source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
    assert messages({"type": "image", "source": source}) - messages() == TOKENS
    assert ollama(images=[IMAGE, IMAGE]) - ollama() == 2 * TOKENS

    # What is counted beforehand is what the engine then reads.
    block = {"type": "image", "source": source}
    content: list[Any] = [{"type": "text", "text": ASKED}, block]
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "system": "x"}
    assert tokens("/v1/messages/count_tokens", fields, "input_tokens") == messages(block)
    part = {"type": "input_image", "image_url": URL}
    content = [{"type": "input_text", "text": ASKED}, part]
    fields = {"input": [{"role": "user", "content": content}], "instructions": "x"}
    assert tokens("/v1/responses/input_tokens", fields, "input_tokens") == responses(part)

    cut = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE[:80]}"}}
    fields = {"messages": [{"role": "user", "content": [cut]}], "max_tokens": 1}
    answer = daemon.post("/v1/chat/completions", {"model": model, **fields})
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_input"), answer.body
    shown = daemon.post("/api/show", {"model": model}).json
    assert "vision" in shown["capabilities"]
    named = daemon.get("/api/tags").json["models"]
    assert [one["capabilities"] for one in named if "seeing" in one["name"]] == [["completion", "vision"]]
    assert daemon.get(f"/models/{model}").json["reads"] == ["text", "image"]
    assert daemon.get(f"/v1/models/{model}").json["dmr"]["reads"] == ["text", "image"]
