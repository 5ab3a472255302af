"""Anthropic's Messages API, against the types of its SDK."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anthropic_types import check_message, events_of
from greenroom.runner.http.anthropic.messages import MessageTranslation
from tiny_vision import base64_png

HELLO: Any = {"model": "tiny", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 4},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}

# The SDK is imported where it is used: each test process collects this file, and the import takes a second.


def streamed(*deltas: dict[str, Any], finish: str = "stop", **last: Any) -> tuple[str, str]:
    """Flags of a fake engine that streams these pieces."""
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish, **last}]})
    chunks.append({"choices": [], "usage": USAGE})
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return "--stream", f"{lines}data: [DONE]\n\n".replace("\n", "\\n")


async def events(server: Any, path: str = "/v1/messages", **fields: Any) -> list[dict[str, Any]]:
    async with server.post(path, {**HELLO, "stream": True, **fields}) as response:
        assert response.status == 200, await response.text()
        assert response.headers["request-id"] == response.headers["X-Request-Id"]
        return events_of(await response.text())


def asked(**fields: Any) -> dict[str, Any]:
    """The chat that an engine gets."""
    return MessageTranslation({**HELLO, **fields}).chat


@pytest.mark.parametrize("prefix_of_route", ["", "/anthropic", "/engines", "/engines/fake"])
async def test_a_text_is_streamed_in_the_real_order(open_server: Any, prefix_of_route: str) -> None:
    server = await open_server("--tokens", "2")
    told = await events(server, f"{prefix_of_route}/v1/messages")
    assert [one["type"] for one in told] == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert told[0]["message"]["id"].startswith("msg_")
    assert told[0]["message"]["model"] == "tiny"
    assert [one["delta"]["text"] for one in told[2:4]] == ["word0 ", "word1 "]
    assert told[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert (told[-2]["usage"]["input_tokens"], told[-2]["usage"]["output_tokens"]) == (3, 2)


async def test_thoughts_texts_and_calls_are_blocks_of_their_own(open_server: Any) -> None:
    import anthropic

    server = await open_server(
        *streamed(
            {"reasoning_content": "Let me"},
            {"reasoning_content": " add."},
            {"content": "Adding."},
            {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
            {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "now", "arguments": "{}"}}]},
            finish="tool_calls",
        )
    )
    told = await events(server)
    blocks = [one["content_block"] for one in told if one["type"] == "content_block_start"]
    assert [one["type"] for one in blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert all(one["id"].startswith("toolu_") for one in blocks[2:])
    assert [one["index"] for one in told if one["type"] == "content_block_stop"] == [0, 1, 2, 3]
    assert told[-2]["delta"]["stop_reason"] == "tool_use"
    assert told[-2]["usage"] == {
        "input_tokens": 3,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "output_tokens": 5,
    }
    async with (
        anthropic.AsyncAnthropic(base_url=server.base, api_key="x", max_retries=0) as client,
        client.messages.stream(**HELLO) as stream,
    ):
        final = await stream.get_final_message()
    thought, text, add, now = (block.model_dump() for block in final.content)
    assert thought == {"type": "thinking", "thinking": "Let me add.", "signature": ""}
    assert text["text"] == "Adding."
    assert (add["name"], add["input"]) == ("add", {"a": 1})
    assert (now["name"], now["input"]) == ("now", {})
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("tool_use", 3, 5)


@pytest.mark.parametrize(
    ("finish", "more", "reason"),
    [
        ("length", {}, "max_tokens"),
        ("stop", {"stop_reason": "END"}, "stop_sequence"),
        ("stop", {"stop_reason": 7}, "end_turn"),
        ("content_filter", {}, "refusal"),
    ],
)
async def test_a_message_without_a_stream_says_why_it_ended(
    open_server: Any, finish: str, more: dict[str, Any], reason: str
) -> None:
    message = {"role": "assistant", "content": "Once", "reasoning_content": "Hm"}
    choice = {"index": 0, "finish_reason": finish, "message": message, **more}
    server = await open_server("--answer", "200", json.dumps({"choices": [choice], "usage": USAGE}))
    async with server.post("/v1/messages", {**HELLO, "stop_sequences": ["END"]}) as response:
        body = await response.json()
    check_message(body)
    assert body["stop_reason"] == reason
    assert body["stop_sequence"] == ("END" if reason == "stop_sequence" else None)
    assert [one["type"] for one in body["content"]] == ["thinking", "text"]


async def test_calls_without_a_stream_have_their_arguments_as_objects(open_server: Any) -> None:
    broken = {"id": "c2", "function": {"name": "now", "arguments": "{not"}}
    message = {"role": "assistant", "content": None, "tool_calls": [CALL, broken]}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    server = await open_server("--answer", "200", json.dumps({"choices": [choice], "usage": USAGE}))
    async with server.post("/v1/messages", HELLO) as response:
        body = await response.json()
    check_message(body)
    assert [one["input"] for one in body["content"]] == [{"a": 1}, {"arguments": "{not"}]
    assert body["stop_reason"] == "tool_use"


def test_blocks_become_the_messages_of_a_chat() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64_png()}}
    chat = asked(
        system=[{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm", "signature": ""},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no", "is_error": True},
                    {"type": "text", "text": "Well?"},
                ],
            },
        ],
        tools=[{"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        metadata={"user_id": "me"},
    )
    system, user, assistant, tool, again = chat["messages"]
    assert system == {"role": "system", "content": "Be brief.\nBe kind."}
    assert user["content"][1]["image_url"] == {"url": f"data:image/png;base64,{base64_png()}"}
    assert (assistant["content"], assistant["reasoning_content"]) == ("Let me see.", "Hm")
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"] == "toolu_1"
    assert tool["content"] == "Error: no"
    assert again == {"role": "user", "content": "Well?"}
    assert chat["tools"][0]["function"]["parameters"] == {"type": "object"}
    assert (chat["tool_choice"], chat["parallel_tool_calls"]) == ("required", False)
    assert (chat["stop"], chat["user"]) == (["END"], "me")
    assert chat["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": "low"}
    assert chat["response_format"]["json_schema"]["schema"] == {"type": "object"}


async def test_the_sdk_raises_its_own_errors_before_and_in_a_stream(open_server: Any) -> None:
    import anthropic

    server = await open_server("--tokens", "9", "--die-after-tokens", "3", "--token-delay", "0.01")
    async with anthropic.AsyncAnthropic(base_url=server.base, api_key="x", max_retries=0) as client:
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(**HELLO, extra_body={"temperature": 1.5})
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.messages.create(**{**HELLO, "model": "absent"})
        assert missing.value.request_id
        stream = await client.messages.create(**HELLO, stream=True)
        with pytest.raises(anthropic.APIStatusError) as caught:
            [one async for one in stream]
    assert "SIGKILL" in caught.value.message


async def test_the_sdk_lists_models(open_server: Any) -> None:
    import anthropic

    server = await open_server()
    async with anthropic.AsyncAnthropic(base_url=f"{server.base}/anthropic", api_key="x") as client:
        listed = await client.models.list()
        assert [one.id for one in listed.data] == ["docker.io/ai/tiny:latest"]
        assert (listed.data[0].type, listed.has_more) == ("model", False)
        named = await client.models.retrieve("tiny")
        assert named == listed.data[0].model_copy(update={"id": "tiny", "display_name": "tiny"}), (
            "under the name that was asked"
        )
        with pytest.raises(anthropic.NotFoundError) as caught:
            await client.models.retrieve("absent")
    body: Any = caught.value.body
    assert body["type"] == "error"


async def test_a_block_of_the_system_prompt_without_a_type_is_refused(open_server: Any) -> None:
    server = await open_server()
    status, error = await server.error(
        server.post("/v1/messages", {**HELLO, "system": [{"text": "Be brief."}]})
    )
    assert (status, error["message"]) == (400, "system[0].type is required.")
