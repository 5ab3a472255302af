"""Tools for a model whose template has none, and stop sequences, in every family, on llama.cpp and mlx."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

PLACE = {"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"]}
SCHEMA: Any = {**PLACE, "$defs": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}}}
TOOL: Any = {"name": "weather", "description": "Get the weather.", "parameters": SCHEMA}
ASK: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]


def check_call(name: str, arguments: Any) -> None:
    made = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert name == "weather"
    assert made["city"] in ("Oslo", "Rome")


ASKED: Any = {"messages": ASK, "tools": [{"type": "function", "function": TOOL}], "temperature": 0}


def takes_results(chats: Any, url: str, model: str) -> None:
    """Its answers after a call was made and returned something, and where it may call or not."""
    import ollama

    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    history: Any = [*ASK, {"role": "assistant", "tool_calls": [call]}]
    history.append({"role": "tool", "tool_call_id": "c1", "content": "snow"})
    told = chats.chat.completions.create(model=model, **{**ASKED, "messages": history}, max_tokens=20)
    assert told.choices[0].message.content
    free: Any = ollama.Client(url).chat(model, ASK, tools=ASKED["tools"], options={"num_predict": 20})
    assert free.message.tool_calls or free.message.content


@pytest.mark.parametrize("file", ["smollm2_gguf", "smollm2_mlx"])
def test_tools_are_called_in_every_family(
    furnished: Path, make_daemon: Callable[..., Any], file: str, request: pytest.FixtureRequest
) -> None:
    import anthropic
    import openai

    daemon = make_daemon(furnished).start()
    model = str(request.getfixturevalue(file))
    chats: Any = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)

    # must call one
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        whole = chats.chat.completions.create(model=model, tool_choice=choice, **ASKED)
        (call,) = whole.choices[0].message.tool_calls
        check_call(call.function.name, call.function.arguments)
        assert whole.choices[0].finish_reason == "tool_calls"
    with chats.chat.completions.stream(model=model, tool_choice="required", **ASKED) as stream:
        streamed = stream.get_final_completion().choices[0]
        assert streamed.message.tool_calls
        check_call("weather", streamed.message.tool_calls[0].function.arguments)
    response = chats.responses.create(
        model=model, input="Weather in Oslo?", tools=[{"type": "function", **TOOL}], tool_choice="required"
    )
    check_call(response.output[0].name, response.output[0].arguments)
    messages: Any = anthropic.Anthropic(base_url=daemon.url, api_key="none", max_retries=0).messages
    tool: Any = {"name": "weather", "description": "Get the weather.", "input_schema": SCHEMA}
    message = messages.create(
        model=model, messages=ASK, max_tokens=99, tools=[tool], tool_choice={"type": "any"}
    )
    assert message.stop_reason == "tool_use"
    check_call(message.content[0].name, message.content[0].input)

    takes_results(chats, daemon.url, model)


@pytest.mark.parametrize("file", ["smollm2_gguf", "smollm2_mlx"])
def test_anthropics_clients_are_told_which_sequence_ended_an_answer(
    furnished: Path, make_daemon: Callable[..., Any], file: str, request: pytest.FixtureRequest
) -> None:
    import anthropic

    daemon = make_daemon(furnished).start()
    messages: Any = anthropic.Anthropic(base_url=daemon.url, api_key="none", max_retries=0).messages
    count: Any = [{"role": "user", "content": "Count from one to ten, in words."}]
    model = str(request.getfixturevalue(file))
    asked: Any = {"model": model, "messages": count, "max_tokens": 60}
    asked["extra_body"] = {"temperature": 0}  # the SDK has no parameter for it any more
    free = messages.create(**asked)
    text = free.content[0].text
    assert (free.stop_reason, free.stop_sequence) in (("end_turn", None), ("max_tokens", None))
    sequence = text[12:16]
    at = text.index(sequence)
    cut = messages.create(**asked, stop_sequences=["never said", sequence])
    assert cut.content[0].text == text[:at]
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", sequence)
    assert cut.usage.input_tokens + (cut.usage.cache_read_input_tokens or 0) > 10
    assert 0 < cut.usage.output_tokens < free.usage.output_tokens
    with messages.stream(**asked, stop_sequences=[sequence, "never said"]) as stream:
        final = stream.get_final_message()
    assert (final.content[0].text, final.stop_sequence) == (text[:at], sequence)
    assert final.usage.output_tokens == cut.usage.output_tokens
    whole = messages.create(**asked, stop_sequences=["never said"])
    assert (whole.content[0].text, whole.stop_sequence) == (text, None)
    assert whole.usage.output_tokens == free.usage.output_tokens
