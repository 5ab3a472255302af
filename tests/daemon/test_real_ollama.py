"""Ollama's own client for Python, with a real model on llama.cpp and mlx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from short_prompt import SHORT_PROMPT
from waiting import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

HELLO = [SHORT_PROMPT, {"role": "user", "content": "Name a colour."}]
EXACT = {"temperature": 0, "seed": 1, "num_predict": 16}


class Colour(BaseModel):
    name: str
    warm: bool


def weather(city: str) -> str:
    """Get the weather.

    Args:
        city: where
    """
    return f"sunny in {city}"


def test_ollamas_client_uses_a_real_model(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    import ollama

    daemon = make_daemon(furnished).start()
    client = ollama.Client(daemon.url)

    # what there is
    client.copy(str(smollm2_gguf), "mine")
    assert "mine:latest" in [one.model for one in client.list().models]
    shown = client.show("mine")
    assert shown.modelinfo is not None
    assert shown.details is not None
    assert (shown.details.family, shown.capabilities) == ("llama", ["completion"])
    assert shown.modelinfo["llama.context_length"] > 1000
    assert "<|im_start|>" in (shown.template or "")

    # load, and what is loaded
    loaded = client.generate("mine", keep_alive="20m")
    assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
    (row,) = client.ps().models
    assert (row.model, row.context_length) == ("mine:latest", 8192)
    assert row.size

    # chats
    whole = client.chat("mine", HELLO, options=EXACT)
    assert whole.model == "mine"
    assert whole.done_reason in ("stop", "length")
    pieces = list(client.chat("mine", HELLO, options=EXACT, stream=True))
    assert "".join(one.message.content or "" for one in pieces) == whole.message.content
    last = pieces[-1]
    assert (last.done, last.eval_count) == (True, whole.eval_count)
    assert last.prompt_eval_count
    assert last.eval_duration
    assert last.total_duration
    assert last.total_duration >= last.eval_duration > 0
    cut = client.chat("mine", HELLO, options={**EXACT, "num_predict": 2})
    assert (cut.done_reason, cut.eval_count) == ("length", 2)
    form = client.chat("mine", HELLO, format=Colour.model_json_schema(), options={"temperature": 0})
    assert Colour.model_validate_json(form.message.content or "").name
    assert client.chat("mine", HELLO, think=False, options=EXACT).message.content
    used = client.chat(
        "mine",
        [
            *HELLO,
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "x"}}}],
            },
            {"role": "tool", "tool_name": "weather", "content": "sunny"},
        ],
        options=EXACT,
    )
    assert used.message.content

    # prompts
    told = client.generate("mine", "Name a colour.", system="Be brief.", options=EXACT)
    assert told.response
    raw = list(client.generate("mine", "The sky is", raw=True, options=EXACT, stream=True))
    assert "".join(one.response or "" for one in raw)
    assert raw[-1].prompt_eval_count == 3

    # a client that leaves
    endless: Any = client.generate("mine", "Count.", raw=True, options={"num_predict": 4000}, stream=True)
    next(endless)
    endless.close()
    until(lambda: daemon.engines()[0]["inside"] == 0)

    # what is recorded of them: llama.cpp tells its tokens without being asked
    assert daemon.chat("mine", stream=True, max_tokens=3).status == 200
    rows = daemon.get("/requests?model=mine").json
    streamed_chat = [one for one in rows if one["path"] == "/api/chat"][1]
    tokens = (streamed_chat["tokens_in"], streamed_chat["tokens_out"], streamed_chat["estimated"])
    assert tokens == (last.prompt_eval_count, last.eval_count, False)
    assert [one["outcome"] for one in rows[-2:]] == ["left", "whole"]
    assert (rows[-1]["tokens_out"], rows[-1]["estimated"]) == (3, False)
    assert rows[-1]["tokens_per_second"] > 0

    # errors
    for status, wrong in (
        (404, lambda: client.chat("absent", HELLO)),
        (404, lambda: list(client.chat("absent", HELLO, stream=True))),
        (422, lambda: client.embed("mine", "x")),
        (400, lambda: client.generate("mine", "x", images=["iVBORw0KGgo="])),
        (400, lambda: client.generate("mine", "x", suffix="y")),
        (404, lambda: client.delete("absent")),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            wrong()
        assert (caught.value.status_code, len(caught.value.error.split()) > 3) == (status, True)
    with pytest.raises(ollama.ResponseError, match="Ollama alone"):
        list(client.pull("registry.ollama.ai/library/smollm2", stream=True))

    # pulls, unload and remove
    assert client.pull(str(smollm2_gguf)).status == "success"
    assert [one.status for one in client.pull(str(smollm2_gguf), stream=True)][-1] == "success"
    assert client.generate("mine", keep_alive=0).done_reason == "unload"
    until(lambda: client.ps().models == [])
    client.delete("mine")
    assert "mine:latest" not in [one.model for one in client.list().models]


@pytest.mark.slow
def test_ollamas_client_uses_mlx(furnished: Path, make_daemon: Callable[..., Any], smollm2_mlx: Path) -> None:
    import ollama

    daemon = make_daemon(furnished).start()
    client = ollama.Client(daemon.url)
    short = {**EXACT, "num_predict": 4}
    mlx = client.chat(str(smollm2_mlx), HELLO, options=short)
    streamed = list(client.chat(str(smollm2_mlx), HELLO, options=short, stream=True))
    assert "".join(one.message.content or "" for one in streamed) == mlx.message.content
    assert streamed[-1].eval_count == mlx.eval_count
    assert streamed[-1].prompt_eval_count == mlx.prompt_eval_count
    assert daemon.chat(str(smollm2_mlx), stream=True, max_tokens=4, temperature=0).status == 200
    counted, estimated = daemon.get("/requests?last=2").json
    assert (counted["tokens_out"], counted["estimated"]) == (streamed[-1].eval_count, False)
    assert estimated["estimated"]
    assert abs(estimated["tokens_out"] - 4) <= 1


@pytest.mark.slow
def test_a_larger_context_loads_again_and_a_smaller_one_does_not(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    import ollama

    daemon = make_daemon(furnished).start()
    client = ollama.Client(daemon.url)
    made = client.create("shorter", from_=str(smollm2_gguf), parameters={"num_ctx": 512})
    assert made.status == "success"
    one_thread = {"model": "shorter", "runtime-flags": ["--threads", "1"]}
    assert daemon.post("/engines/_configure", one_thread).status == 202
    client.chat("shorter", HELLO, options=EXACT)
    assert 512 in [one.context_length for one in client.ps().models]
    larger = client.chat("shorter", HELLO, options={**EXACT, "num_ctx": 1024})
    assert larger.message.content
    client.chat("shorter", HELLO, options={**EXACT, "num_ctx": 256})
    sizes = [one.context_length for one in client.ps().models]
    assert (1024 in sizes, 512 in sizes) == (True, False)
    client.delete("shorter")
    assert "shorter:latest" not in [one.model for one in client.list().models]
