"""Ollama's library."""

from typing import Any

import ollama
from checks import ABSENT, BASE, EMBEDDER, MODEL, STORY, TOO_LONG, WEATHER, check, idle, occupied, raised, run

client = ollama.Client(BASE)
story: Any = {"model": MODEL, "messages": [{"role": "user", "content": STORY}], "options": {"num_predict": 8}}


@check("chat")
def _() -> None:
    answer = client.chat(**story)
    assert answer.message.content
    assert (answer.done_reason, answer.eval_count) == ("length", 8)
    assert client.generate(MODEL, "The sea is", options={"num_predict": 4}).response
    assert MODEL in [(model.model or "").removesuffix(":latest") for model in client.list().models]
    assert client.show(MODEL).capabilities
    assert client.ps().models


@check("stream")
def _() -> None:
    parts = list(client.chat(**story, stream=True))
    assert len(parts) > 2
    assert parts[-1].done_reason == "length"


@check("tools")
def _() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    question = {"role": "user", "content": "Use the tool: what is the weather in Paris?"}
    answer = client.chat(MODEL, [question], tools=[tool], options={"num_predict": 200})
    # Ollama's API cannot require a call: a small model may as well answer in words.
    assert answer.message.tool_calls or answer.message.content
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    turns = [question, {"role": "assistant", "tool_calls": [call]}]
    turns.append({"role": "tool", "tool_name": "weather", "content": "It rains."})
    assert client.chat(MODEL, turns, tools=[tool], options={"num_predict": 8}).message.content


@check("schema")
def _() -> None:
    answer = client.chat(MODEL, story["messages"], format=WEATHER, options={"num_predict": 64})
    assert "city" in (answer.message.content or "")


@check("embeddings")
def _() -> None:
    assert len(client.embed(EMBEDDER, ["the sea", "a tax form"]).embeddings) == 2


@check("errors")
def _() -> None:
    absent = raised(ollama.ResponseError, lambda: client.chat(**{**story, "model": ABSENT}))
    assert absent.status_code == 404
    long = {"role": "user", "content": TOO_LONG}
    too_long = raised(ollama.ResponseError, lambda: client.chat(**{**story, "messages": [long]}))
    assert too_long.status_code == 400
    with occupied():
        assert raised(ollama.ResponseError, lambda: client.chat(**story)).status_code == 429


@check("cancellation")
def _() -> None:
    stream: Any = client.chat(**{**story, "options": {"num_predict": 1500}}, stream=True)
    next(stream)
    stream.close()
    idle()


run()
