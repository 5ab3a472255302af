"""What is done in an engine's place: tools for a model without a template for them, stop sequences."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anthropic_types import events_of
from greenroom.runner.http.answer_filters import Completion
from greenroom.runner.http.engine_requests import uses_tools
from greenroom.runner.http.stop_sequences import StopSequences
from greenroom.runner.http.tool_prompt import ToolPrompt
from sdk_types import events_in

PARAMETERS = {"type": "object", "properties": {"a": {"type": "number"}}}
ADD: Any = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now"}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "1+1?"}], "tools": [ADD, NOW]}
CALL = '{"name": "add", "arguments": {"a": 1}}'


HELLO: Any = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def streamed(*texts: str, finish: str = "stop") -> tuple[str, str]:
    """Flags of a fake engine that streams these pieces."""
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": one}}]} for one in texts]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return "--stream", f"{lines}data: [DONE]\n\n".replace("\n", "\\n")


async def events(server: Any, **fields: Any) -> list[dict[str, Any]]:
    async with server.post("/v1/messages", {**HELLO, "stream": True, **fields}) as response:
        assert response.status == 200, await response.text()
        return events_of(await response.text())


def answered(text: str, finish: str = "stop", size: int = 3, **fields: Any) -> dict[str, Any]:
    """The choice that a streamed answer with this text amounts to, which is also that of a whole one."""
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    prompt, whole = ToolPrompt({**CHAT, **fields}, instructs=True), Completion()
    chunks = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    for chunk in [*chunks, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}]:
        for one in prompt.chunk(chunk):
            whole.add(one)
    (choice,) = whole.completion["choices"]
    said = {"message": {"content": text}, "finish_reason": finish}
    at_once = ToolPrompt({**CHAT, **fields}, instructs=True).completion({"choices": [said]})["choices"][0]
    assert (choice["message"].get("content") or "").strip() == (at_once["message"]["content"] or "").strip()
    assert names_in(choice) == names_in(at_once)
    return dict(choice)


def names_in(choice: dict[str, Any]) -> list[str]:
    return [one["function"]["name"] for one in choice["message"].get("tool_calls") or ()]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        (f"<tool_call>{CALL}</tool_call>", "", ["add"]),
        (f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>", "", ["add", "add"]),
        (f"I add. <tool_call>{CALL}</tool_call>", "I add. ", ["add"]),
        (f"<tool_call>{CALL}", "", ["add"]),
        (CALL, "", ["add"]),
        (f"```json\n{CALL}\n```", "", ["add"]),
        ('[{"name": "now"}, {"name": "add", "parameters": {}}]', "", ["now", "add"]),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', "", ["add"]),
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', []),
        ("<tool_call>not JSON</tool_call>", "<tool_call>not JSON</tool_call>", []),
        ("It is 2 < 3, as </tool_call> shows.", "It is 2 < 3, as </tool_call> shows.", []),
        ('{"answer": 2}', '{"answer": 2}', []),
        ("", "", []),
    ],
)
def test_calls_are_found_in_what_a_model_says(text: str, content: str, names: list[str], size: int) -> None:
    choice = answered(text, size=size)
    assert ((choice["message"].get("content") or ""), names_in(choice)) == (content, names)
    assert choice["finish_reason"] == ("tool_calls" if names else "stop")


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    ("text", "content", "arguments"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 1', "", ['{"a": 1']),
        ('I add. <tool_call>\n{"name": "add", "arguments": {', "I add. ", ["{"]),
        ('{"name": "add", "parameters": {"a": "x\\"', "", ['{"a": "x\\"']),
        ('```json\n{"name": "add", "arguments": {"a": 1}', "", ['{"a": 1}']),
        (f"<tool_call>{CALL}</tool_call><tool_call>{CALL[:-4]}", "", ['{"a":1}', '{"a":']),
        (f"<tool_call>{CALL}", "", ['{"a":1}']),
        (f"<tool_call>{CALL}</tool_", "", ['{"a":1}']),
        (f"<tool_call>{CALL}</tool_call>", "", ['{"a":1}']),
        # What would be called is not known yet, or is none of the tools.
        ('<tool_call>{"name": "add"', '<tool_call>{"name": "add"', []),
        ('<tool_call>{"name": "ad', '<tool_call>{"name": "ad', []),
        ('<tool_call>{"name": "other", "arguments": {', '<tool_call>{"name": "other", "arguments": {', []),
        ("I add <tool", "I add <tool", []),
    ],
)
def test_a_call_that_is_cut_off_has_what_there_is_of_its_arguments(
    text: str, content: str, arguments: list[str], size: int
) -> None:
    choice = answered(text, "length", size)
    assert (choice["message"].get("content") or "") == content
    calls = choice["message"].get("tool_calls") or ()
    assert [one["function"]["arguments"] for one in calls] == arguments
    assert choice["finish_reason"] == "length"


async def test_every_family_says_that_a_call_was_cut_off(open_server: Any) -> None:
    cut = '{"a": 1'
    server = await open_server(*streamed(f'<tool_call>{{"name": "add", "arguments": {cut}', finish="length"))
    _, lines = await server.stream(tools=[ADD])
    (choice,) = [
        choice
        for line in lines
        if line.startswith("data: {")
        for choice in json.loads(line[6:])["choices"]
        if choice["finish_reason"]
    ]
    (call,) = choice["delta"]["tool_calls"]
    assert (choice["finish_reason"], call["function"]) == ("length", {"name": "add", "arguments": cut})
    told = await events(server, tools=[{"name": "add", "input_schema": PARAMETERS}])
    assert [one["delta"]["partial_json"] for one in told if one["type"] == "content_block_delta"] == [cut]
    assert told[-2]["delta"]["stop_reason"] == "max_tokens"
    asked: Any = {"model": "tiny", "input": "1+1?", "tools": [{"type": "function", **ADD["function"]}]}
    async with server.post("/v1/responses", {**asked, "stream": True}) as response:
        *_, last = events_in(await response.text())
    made = last["response"]
    (item,) = made["output"]
    assert (made["status"], made["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")
    assert (item["type"], item["status"], item["arguments"]) == ("function_call", "incomplete", cut)
    body = {"model": "tiny", "messages": CHAT["messages"], "tools": [ADD]}
    async with server.post("/api/chat", body) as response:
        answers = [json.loads(line) for line in (await response.text()).splitlines()]
    # Arguments are objects there.
    assert "".join(one["message"]["content"] for one in answers) == f"add {cut}"
    assert answers[-1]["done_reason"] == "length"
    assert not any("tool_calls" in one["message"] for one in answers)


LONG = {"text": 'abcdefgh"' * 8_000}


@pytest.mark.parametrize("own", [False, True])
async def test_a_long_call_comes_in_lines_that_every_client_can_read(open_server: Any, own: bool) -> None:
    """Go's scanner and aiohttp's `readline` give up at 64 KiB. `own`: the engine itself has made the call."""
    arguments = json.dumps(LONG, ensure_ascii=False)
    if own:
        function = {"name": "add", "arguments": arguments}
        calls = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}
        chunk = {"choices": [{"index": 0, "delta": calls, "finish_reason": "tool_calls"}], "usage": {"x": 3}}
        data = json.dumps(chunk, ensure_ascii=False)
        server = await open_server("--stream", f"data: {data}\\n\\ndata: [DONE]\\n\\n")
    else:
        server = await open_server(*streamed(f'<tool_call>{{"name": "add", "arguments": {arguments}}}'))
    tools: Any = {} if own else {"tools": [ADD]}

    whole = Completion()
    _, lines = await server.stream(**tools)
    for line in lines:
        assert len(line.encode()) < 64 * 1024
        if line.startswith("data: {"):
            chunk = json.loads(line[6:])
            whole.add(chunk)
    (choice,) = whole.completion["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == LONG
    assert (call["type"], choice["finish_reason"]) == ("function", "tool_calls")
    assert whole.completion["usage"]

    tools = {} if own else {"tools": [{"name": "add", "input_schema": PARAMETERS}]}
    told = await events(server, **tools)
    assert max(len(json.dumps(one, ensure_ascii=False).encode()) for one in told) < 64 * 1024
    pieces = [one["delta"]["partial_json"] for one in told if one["type"] == "content_block_delta"]
    assert json.loads("".join(pieces)) == LONG
    assert [one["type"] for one in told].count("content_block_start") == 1

    tools = {} if own else {"tools": [{"type": "function", **ADD["function"]}]}
    async with server.post(
        "/v1/responses", {"model": "tiny", "input": "1", "stream": True, **tools}
    ) as response:
        made = [*events_in(await response.text())]
    deltas = [one["delta"] for one in made if one["type"] == "response.function_call_arguments.delta"]
    assert max(len(one) for one in deltas) < 16 * 1024
    assert json.loads("".join(deltas)) == LONG
    assert made[-1]["response"]["output"][0]["arguments"] == "".join(deltas)

    tools = {} if own else {"tools": [ADD]}
    async with server.post("/api/chat", {"model": "tiny", "messages": CHAT["messages"], **tools}) as response:
        answers = [json.loads(line) for line in (await response.text()).splitlines()]
    (said,) = [one for answer in answers for one in answer["message"].get("tool_calls") or ()]
    assert said["function"]["arguments"] == LONG


def test_text_is_passed_on_as_soon_as_it_is_no_call() -> None:
    prompt = ToolPrompt(CHAT, instructs=True)

    def passed(text: str) -> str:
        (chunk,) = prompt.chunk({"choices": [{"index": 0, "delta": {"content": text}}]})
        return str(chunk["choices"][0]["delta"].get("content", ""))

    assert [passed(text) for text in ("{", ' "na', 'me" is a key', " <too", "ls>")] == [
        *("", "", '{ "name" is a key', " ", "<tools>"),
    ]


def test_who_must_call_a_tool_can_say_nothing_else() -> None:
    schema = {**PARAMETERS, "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "number"}}}
    deep = {"type": "function", "function": {"name": "deep", "parameters": schema}}
    chat = {**CHAT, "tools": [ADD, deep], "tool_choice": "required", "parallel_tool_calls": True, "top_k": 1}
    asked = ToolPrompt(chat, instructs=True).chat(chat)
    assert asked.keys() == {"messages", "response_format", "top_k"}
    made = asked["response_format"]["json_schema"]["schema"]
    add, other = made["anyOf"]
    assert add["properties"] == {"name": {"const": "add"}, "arguments": PARAMETERS}
    assert other["properties"]["arguments"] == {"$ref": "#/$defs/tool1"}
    assert made["$defs"]["tool1"]["properties"] == {"a": {"$ref": "#/$defs/tool1/$defs/x"}}
    assert made["$defs"]["tool1"]["$defs"] == {"x": {"type": "number"}}
    named = {**CHAT, "tool_choice": {"type": "function", "function": {"name": "now"}}}
    only = ToolPrompt(named, instructs=True).chat(named)["response_format"]["json_schema"]["schema"]
    assert only["properties"]["name"] == {"const": "now"}
    assert names_in(answered('{"name": "add", "arguments": {}}', tool_choice="required")) == ["add"]


def test_history_is_told_in_words_that_every_template_shows() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    chat: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "I add.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "two"}]},
            {"role": "tool", "tool_call_id": "d", "content": "2"},
            {"role": "user", "content": "So?"},
        ]
    }
    assert uses_tools(chat)
    assert not uses_tools({"messages": chat["messages"][:1]})
    user, assistant, results = ToolPrompt(chat, instructs=False).chat(chat)["messages"]
    assert user["content"] == "1+1?", "no tools are offered"
    assert assistant == {
        "role": "assistant",
        "content": 'I add.\n<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>',
    }
    results_told = "<tool_response>\ntwo\n</tool_response>\n<tool_response>\n2\n</tool_response>\n\nSo?"
    assert results == {"role": "user", "content": results_told}


@pytest.mark.parametrize("instructs", [True, False])
def test_instructions_stand_where_the_template_has_a_place_for_them(instructs: bool) -> None:
    first = ToolPrompt(CHAT, instructs=instructs).chat(CHAT)["messages"][0]
    assert first["role"] == ("system" if instructs else "user")
    assert '"name":"add"' in first["content"]
    assert first["content"].endswith("1+1?") == (not instructs)
    given = {**CHAT, "messages": [{"role": "system", "content": "Be kind."}, *CHAT["messages"]]}
    system, user = ToolPrompt(given, instructs=True).chat(given)["messages"]
    assert system["content"].startswith("Be kind.\n\nYou have these tools")
    assert user["content"] == "1+1?"
    none = {**CHAT, "tool_choice": "none"}
    assert ToolPrompt(none, instructs=True).chat(none) == {"messages": CHAT["messages"]}


async def test_every_family_gets_calls_in_its_own_form(open_server: Any) -> None:
    server = await open_server(*streamed("<tool_call>", CALL + "</tool_call>"))
    status, lines = await server.stream(tools=[ADD])
    frames = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    (made,) = [
        call for one in frames if one["choices"] for call in one["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert (status, made["function"]) == (200, {"name": "add", "arguments": '{"a":1}'})
    assert all(one["model"] == "tiny" for one in frames)
    assert lines[-2:] == ["data: [DONE]", ""] or lines[-1] == "data: [DONE]"
    tool = {"name": "add", "input_schema": PARAMETERS}
    told = await events(server, tools=[tool])
    assert [one["content_block"]["type"] for one in told if one["type"] == "content_block_start"] == [
        "tool_use"
    ]
    assert told[-2]["delta"]["stop_reason"] == "tool_use"
    body = {"model": "tiny", "messages": CHAT["messages"], "tools": [ADD]}
    async with server.post("/api/chat", body) as response:
        objects = [json.loads(line) for line in (await response.text()).splitlines()]
    calls = [call for one in objects for call in one["message"].get("tool_calls", ())]
    assert [call["function"]["arguments"] for call in calls] == [{"a": 1}]
    asked: Any = {"model": "tiny", "input": "1+1?", "tools": [{"type": "function", **ADD["function"]}]}
    async with server.post("/v1/responses", {**asked, "stream": True}) as response:
        text = await response.text()
    assert '"type":"function_call"' in text


async def test_the_sequence_that_ends_an_answer_is_named(open_server: Any) -> None:
    server = await open_server(*streamed("one ", "two th", "ree four"))
    told = await events(server, stop_sequences=["four", "three"])
    text = "".join(one["delta"].get("text", "") for one in told if one["type"] == "content_block_delta")
    assert text == "one two "
    assert told[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "three"}
    assert [one["type"] for one in told[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    async with server.post("/v1/messages", {**HELLO, "stop_sequences": ["three"]}) as response:
        whole = await response.json()
    assert (whole["content"][0]["text"], whole["stop_sequence"]) == ("one two ", "three")
    async with server.post("/v1/messages", {**HELLO, "stop_sequences": ["five"]}) as response:
        whole = await response.json()
    assert (whole["content"][0]["text"], whole["stop_reason"]) == ("one two three four", "end_turn")
    assert whole["usage"]["output_tokens"] == 5


async def test_an_engine_is_left_as_soon_as_a_sequence_has_come(open_server: Any) -> None:
    server = await open_server("--tokens", "100000", "--token-delay", "0.01")
    async with server.post("/v1/messages", {**HELLO, "stop_sequences": ["word3"]}) as response:
        whole = await response.json()
    assert whole["content"][0]["text"] == "word0 word1 word2 "
    await server.nothing_is_held()
    assert (await server.stats())["aborted"] == 1


def test_the_first_sequence_counts_and_what_may_be_one_is_held_back() -> None:
    watch = StopSequences(["\n\nHuman", "STOP"])

    def passed(text: str, **more: Any) -> list[Any]:
        return list(watch.chunk({"choices": [{"index": 0, "delta": {"content": text}}], **more}))

    assert passed("a\n")[0]["choices"][0]["delta"] == {"content": "a"}
    assert passed("\nHum")[0]["choices"][0]["delta"] == {}
    assert passed("bug S")[0]["choices"][0]["delta"] == {"content": "\n\nHumbug "}
    last, usage = passed("TOP.", timings={"prompt_n": 3, "cache_n": 4, "predicted_n": 9})
    assert last["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "STOP"}
    assert watch.done
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (7, 9)
