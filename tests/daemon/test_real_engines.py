"""The main job on real engines: install because it is needed, load, stream, adopt, survive."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic
import pytest

import anthropic_types
from anthropic_types import check_message
from openai_types import check_response, events_of
from short_prompt import SHORT_PROMPT

# SDKs are imported where they are used: each test process collects this file, and they take seconds.
if TYPE_CHECKING:
    import openai
    from anthropic.resources import Messages

STORY = "Write a long story about the sea."
"""No model ends that within a few tokens."""

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def test_llama_cpp_streams_through_the_openai_sdk(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    import openai

    daemon = make_daemon(furnished).start()
    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model=str(smollm2_gguf),
        messages=[{"role": "user", "content": "Name a colour."}],
        stream=True,
        max_tokens=24,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 3
    assert "".join(pieces).strip()
    calls_a_tool(client, str(smollm2_gguf))
    responses_of(client, str(smollm2_gguf))
    counted = messages_of(daemon.url, str(smollm2_gguf)).count_tokens(
        model=str(smollm2_gguf), messages=[{"role": "user", "content": STORY}]
    )
    assert counted.input_tokens > 3
    client.close()


def calls_a_tool(client: openai.OpenAI, model: str) -> None:
    """A call that the client demands, of a model whose template has no tools."""
    city = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    asked: Any = {
        "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": city}}],
    }
    whole = client.chat.completions.create(model=model, tool_choice="required", temperature=0, **asked)
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.tool_calls
    (call,) = whole.choices[0].message.tool_calls
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


def messages_of(url: str, model: str) -> Messages:
    """The API of Anthropic's SDK, after a message with it and one as a stream."""
    import anthropic

    messages = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0).messages
    asked: Any = {
        "model": model,
        "max_tokens": 3,
        "system": SHORT_PROMPT["content"],
        "messages": [{"role": "user", "content": STORY}],
    }
    whole = messages.create(**asked)
    check_message(whole.model_dump(exclude_unset=True))
    assert (whole.model, whole.stop_reason, whole.usage.output_tokens) == (model, "max_tokens", 3)
    raw = messages.with_raw_response.create(**asked, stream=True)
    told = anthropic_types.events_of(raw.http_response.read().decode())
    assert told[-2]["delta"]["stop_reason"] == "max_tokens"
    usage = told[-2]["usage"]
    read = whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == read
    return messages


class Colour(pydantic.BaseModel):
    name: Literal["red", "blue"]


def responses_of(client: openai.OpenAI, model: str) -> None:
    """A conversation of responses, a schema and a count of tokens."""
    raw = client.responses.with_raw_response.create(
        model=model, input=STORY, stream=True, max_output_tokens=8
    )
    told = events_of(raw.http_response.read().decode())
    first = told[-1]["response"]
    assert (first["status"], first["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert first["usage"]["output_tokens"] == 8
    second = client.responses.create(
        model=model, input="Write a longer one.", previous_response_id=first["id"], max_output_tokens=8
    )
    check_response(second.model_dump(by_alias=True, exclude_unset=True))
    assert second.usage is not None
    assert second.usage.input_tokens > first["usage"]["input_tokens"] + 8
    assert client.responses.retrieve(second.id).output_text == second.output_text
    parsed = client.responses.parse(model=model, input="A colour.", text_format=Colour, max_output_tokens=64)
    assert parsed.output_parsed is not None
    counted = client.responses.input_tokens.count(model=model, input=STORY)
    assert counted.input_tokens == first["usage"]["input_tokens"]


@pytest.mark.slow
def test_mlx_is_installed_by_the_request_under_auto_and_serves_the_same_model(
    make_daemon: Callable[..., Any], smollm2_mlx: Path
) -> None:
    import openai

    daemon = make_daemon(GREENROOM_INSTALL_POLICY="auto", GREENROOM_PROGRESS_AFTER="0.5").start()
    daemon.pull(str(smollm2_mlx))
    answer = daemon.chat(str(smollm2_mlx), stream=True, max_tokens=4)
    assert answer.status == 200
    lines = answer.body.decode().splitlines()
    assert any(line.startswith(":") and "mlx" in line for line in lines), lines[:5]
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert said.strip()
    assert {chunk["model"] for chunk in chunks} == {str(smollm2_mlx)}
    assert lines[-1] == "data: [DONE]" or lines[-2] == "data: [DONE]"
    messages_of(daemon.url, str(smollm2_mlx))
    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)
    response = client.responses.create(
        model=str(smollm2_mlx), instructions=SHORT_PROMPT["content"], input=STORY, max_output_tokens=3
    )
    check_response(response.model_dump(by_alias=True, exclude_unset=True))
    assert (response.status, bool(response.output_text)) == ("incomplete", True)
    parsed = client.responses.parse(
        model=str(smollm2_mlx), input="A colour.", text_format=Colour, max_output_tokens=64
    )
    assert parsed.output_parsed is not None
    committed = [
        fields for _, fields in daemon.events("installation_committed") if fields["backend"] == "mlx"
    ]
    assert len(committed) == 1
    requested = [fields for _, fields in daemon.events("install_requested") if fields["backend"] == "mlx"]
    assert requested[0]["wanted_by"] == "request"


@pytest.mark.parametrize("policy", [pytest.param("ask", marks=pytest.mark.slow), "never"])
def test_a_model_only_mlx_can_serve_is_refused_with_the_command_that_installs_it(
    make_daemon: Callable[..., Any], smollm2_mlx: Path, policy: str
) -> None:
    daemon = make_daemon(GREENROOM_INSTALL_POLICY=policy).start()
    daemon.pull(str(smollm2_mlx))
    answer = daemon.chat(str(smollm2_mlx))
    assert answer.status == 412
    error = answer.json["error"]
    assert error["message"] == 'backend "mlx" is not installed; run: greenroom install-runner --backend mlx'
    assert error["download_bytes"] > 10_000_000
    assert not [1 for _, fields in daemon.events("install_requested") if fields["backend"] == "mlx"]


def test_an_engine_killed_in_mid_stream_is_one_error_frame_and_the_next_request_is_served(
    furnished: Path, make_daemon: Callable[..., Any], smollm2_gguf: Path
) -> None:
    daemon = make_daemon(furnished).start()
    assert daemon.chat(str(smollm2_gguf)).status == 200
    (engine,) = daemon.engines()
    body = {
        "model": str(smollm2_gguf),
        "messages": [{"role": "user", "content": "Count from one to a thousand."}],
        "stream": True,
        "max_tokens": 4000,
        "ignore_eos": True,
    }
    request = urllib.request.Request(f"{daemon.url}/v1/chat/completions", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as stream:
        while not stream.readline().startswith(b"data: "):
            pass
        os.kill(engine["pid"], signal.SIGKILL)
        rest = [line for line in stream.read().decode().splitlines() if line.startswith("data: ")]
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert "SIGKILL" in error["message"]
    assert sum('"error"' in line for line in rest) == 1
    assert daemon.chat(str(smollm2_gguf)).status == 200
    (again,) = daemon.engines()
    assert again["pid"] != engine["pid"]


@pytest.mark.slow
def test_fifty_simultaneous_requests_for_an_absent_backend_make_one_installation(
    make_daemon: Callable[..., Any],
) -> None:
    daemon = make_daemon().start()
    answers: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(daemon.post("/engines/install-backend", {"backend": "mlx"}).status)
        )
        for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 50
    assert sum(fields["backend"] == "mlx" for _, fields in daemon.events("installation_committed")) == 1
    assert sum(fields["backend"] == "mlx" for _, fields in daemon.events("install_requested")) == 1
