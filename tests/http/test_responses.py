"""OpenAI's Responses API, against the types of its SDK."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiohttp
import pydantic
import pytest

from openai_types import check_response, events_of
from tiny_vision import base64_png

HELLO = {"model": "tiny", "input": "hi"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}

# The SDK is imported where it is used: each test process collects this file, and the import takes a second.


def streamed(*deltas: dict[str, Any], finish: str = "stop") -> tuple[str, str]:
    """Flags of a fake engine that streams these pieces."""
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    chunks.append({"choices": [], "usage": USAGE})
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return "--stream", f"{lines}data: [DONE]\n\n".replace("\n", "\\n")


def answered(finish: str = "stop", **message: Any) -> tuple[str, str, str]:
    """Flags of a fake engine that answers so."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}
    return "--answer", "200", json.dumps({"choices": [choice], "usage": USAGE})


async def events(server: Any, **fields: Any) -> list[dict[str, Any]]:
    async with server.post("/v1/responses", {**HELLO, "stream": True, **fields}) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        return events_of(await response.text())


async def made(server: Any, **fields: Any) -> dict[str, Any]:
    async with server.post("/v1/responses", {**HELLO, **fields}) as response:
        body = await response.json()
        assert response.status == 200, body
        check_response(body)
        return dict(body)


def names(all_of: list[dict[str, Any]]) -> list[str]:
    return [one["type"].removeprefix("response.") for one in all_of]


async def test_a_text_is_streamed_in_the_real_order(open_server: Any) -> None:
    server = await open_server("--tokens", "2")
    told = await events(server)
    assert names(told) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done", "completed"),
    ]
    assert told[0]["response"]["status"] == "in_progress"
    assert told[0]["response"]["output"] == told[2]["item"]["content"] == []
    assert [one["delta"] for one in told[4:6]] == ["word0 ", "word1 "]
    assert {(one["output_index"], one["content_index"]) for one in told[3:8]} == {(0, 0)}
    assert {one["item_id"] for one in told[3:8]} == {told[2]["item"]["id"]}
    last = told[-1]["response"]
    assert last["output"] == [told[8]["item"]]
    assert last["output"][0]["content"][0]["text"] == "word0 word1 "
    assert (last["status"], last["model"]) == ("completed", "tiny")
    assert last["usage"]["input_tokens"] == 3
    assert last["usage"]["total_tokens"] == 5
    assert last["id"].startswith("resp_")
    assert last["output"][0]["id"].startswith("msg_")


async def test_calls_and_reasoning_are_items_of_their_own(open_server: Any) -> None:
    call = {"index": 0, "id": "call_1", "function": {"name": "add", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"a":', "1}")]
    other = {"index": 1, "id": "call_2", "function": {"name": "now", "arguments": "{}"}}
    flags = streamed(
        {"role": "assistant", "content": None},
        {"reasoning_content": "Let me"},
        {"reasoning_content": " add."},
        {"content": "Adding."},
        {"tool_calls": [call]},
        *({"tool_calls": [one]} for one in more),
        {"tool_calls": [other]},
        finish="tool_calls",
    )
    server = await open_server(*flags)
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("add", "now")]
    told = await events(server, tools=tools)
    assert names(told) == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    thought, said, add, now = told[-1]["response"]["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Let me add."}]
    assert said["content"][0]["text"] == "Adding."
    assert (add["call_id"], add["name"], add["arguments"]) == ("call_1", "add", '{"a":1}')
    assert (now["call_id"], now["name"], now["arguments"]) == ("call_2", "now", "{}")
    assert [one["id"][:3] for one in (thought, add)] == ["rs_", "fc_"]
    assert told[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] == 2

    told = await events(server, reasoning={"effort": "low", "summary": "auto"})
    assert names(told)[2:8] == [
        *("output_item.added", "reasoning_summary_part.added"),
        *("reasoning_summary_text.delta", "reasoning_summary_text.delta"),
        *("reasoning_summary_text.done", "reasoning_summary_part.done"),
    ]
    thought = told[-1]["response"]["output"][0]
    assert thought["summary"] == [{"type": "summary_text", "text": "Let me add."}]


async def test_an_answer_without_a_stream_has_the_same_items(open_server: Any) -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}]
    server = await open_server(
        *answered("tool_calls", content="Adding.", reasoning_content="Let me.", tool_calls=calls)
    )
    response = await made(server, metadata={"who": "me"}, instructions="Be brief.")
    assert [one["type"] for one in response["output"]] == ["reasoning", "message", "function_call"]
    assert {one["status"] for one in response["output"]} == {"completed"}
    assert (response["metadata"], response["instructions"]) == ({"who": "me"}, "Be brief.")
    assert response["usage"]["output_tokens"] == 5


async def test_an_answer_that_is_cut_off_is_incomplete_and_says_why(open_server: Any) -> None:
    server = await open_server(*streamed({"content": "Once more"}, finish="length"))
    last = (await events(server, max_output_tokens=2))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"
    assert last["response"]["completed_at"] is None


async def test_an_engine_that_dies_ends_its_stream_with_an_error_and_a_failed_response(
    open_server: Any,
) -> None:
    import openai

    server = await open_server("--tokens", "9", "--die-after-tokens", "3", "--token-delay", "0.01")
    told = await events(server)
    assert names(told)[-2:] == ["error", "failed"]
    assert told[-1]["response"]["error"]["code"] == "server_error"
    assert told[-1]["response"]["output"][0]["status"] == "incomplete"
    async with openai.AsyncOpenAI(base_url=f"{server.base}/v1", api_key="x", max_retries=0) as client:
        stream = await client.responses.create(model="tiny", input="hi", stream=True)
        with pytest.raises(openai.APIError) as caught:
            [one async for one in stream]
    assert "SIGKILL" in caught.value.message


async def test_a_stream_that_fails_begins_only_once_where_tools_are_done_here(open_server: Any) -> None:
    server = await open_server("--tokens", "9", "--die-after-tokens", "3", "--token-delay", "0.01")
    told = await events(server, tools=[{"type": "function", "name": "add", "parameters": {"type": "object"}}])
    assert names(told)[:2] == ["created", "in_progress"]
    assert names(told)[-2:] == ["error", "failed"]
    assert names(told).count("created") == 1


async def test_items_become_the_messages_of_a_chat(open_server: Any) -> None:
    server = await open_server("--echo")
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"}
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "1+1?"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm"}],
        },
        call,
        {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "two"},
    ]
    # The template of this model has no place for tools, so their results become text.
    told = (await made(server, input=items))["output"][0]["content"][0]["text"]
    assert told == "<tool_response> two </tool_response> "

    from greenroom.runner.http.responses.input import items_of, messages_of

    system, user, assistant, tool = messages_of("Be brief.", items_of(items))
    assert system == {"role": "system", "content": "Be brief.\n\nBe kind."}
    assert user["content"] == "1+1?"
    assert assistant["reasoning_content"] == "Hm"
    assert [one["id"] for one in assistant["tool_calls"]] == ["c1", "c2"]
    assert tool == {"role": "tool", "tool_call_id": "c1", "content": "two"}


async def test_what_an_engine_is_asked_is_in_its_own_terms(open_server: Any) -> None:
    server = await open_server("--echo-fields")
    tool = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}
    schema = {"type": "json_schema", "name": "sum", "schema": {"type": "object"}, "strict": True}
    body = {
        **HELLO,
        "tools": [tool, {"type": "web_search"}],
        "tool_choice": "required",
        "text": {"format": schema},
        "reasoning": {"effort": "low"},
        "max_output_tokens": 16,
        "include": ["reasoning.encrypted_content"],
        "service_tier": "auto",
        "client_metadata": {"a": "b"},
    }
    async with server.post("/v1/responses", body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        ignored = response.headers["X-Greenroom-Ignored"].split(", ")
    check_response(answer)
    assert [one["name"] for one in answer["tools"]] == ["add"]
    assert answer["text"]["format"] == schema
    assert ignored == [
        *("service_tier", "client_metadata"),
        *("tools[1] (web_search)", "include (reasoning.encrypted_content)"),
    ]


async def test_a_mistake_names_the_field_as_the_client_knows_it(open_server: Any) -> None:
    server = await open_server()
    image = [{"type": "input_image", "image_url": f"data:image/png;base64,{base64_png()}"}]
    for fields, param in (
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"role": "user", "content": image}]}, "input"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice"),
        ({"background": True, "store": False}, "store"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"metadata": {"x": 1}}, "metadata.x"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
    ):
        for stream in (False, True):
            status, error = await server.error(
                server.post("/v1/responses", {**HELLO, "stream": stream, **fields})
            )
            assert (status, error["param"]) == (400, param), error
    assert server.greenroom.engines() == ()


# what is kept


async def test_a_conversation_goes_on_from_what_is_kept(open_server: Any) -> None:
    server = await open_server("--echo")
    first = await made(server, input="one", instructions="Only now.")
    second = await made(server, input="two", previous_response_id=first["id"])
    third = (await events(server, input="three", previous_response_id=second["id"]))[-1]["response"]
    assert third["previous_response_id"] == second["id"]
    async with server.get(f"/v1/responses/{third['id']}") as response:
        assert (await response.json()) == third
    path = f"/v1/responses/{third['id']}/input_items"
    async with server.get(f"{path}?order=asc&limit=4") as response:
        page = await response.json()
    assert [one["content"][0]["text"] for one in page["data"]] == ["one", "one ", "two", "two "]
    assert (page["has_more"], page["last_id"]) == (True, page["data"][-1]["id"])
    async with server.get(f"/engines{path}?order=asc&after={page['last_id']}") as response:
        rest = await response.json()
    assert [one["content"][0]["text"] for one in rest["data"]] == ["three"]
    assert not rest["has_more"]
    reference = {"type": "item_reference", "id": second["output"][0]["id"]}
    again = await made(server, input=[{"role": "user", "content": "x"}, reference], store=False)
    assert again["output"][0]["content"][0]["text"] == "two "
    async with server.get(f"/v1/responses/{again['id']}") as response:
        assert response.status == 404


async def test_a_deleted_response_is_gone_and_nothing_goes_on_from_it(open_server: Any) -> None:
    server = await open_server("--echo")
    first = await made(server, input="a secret word")
    second = await made(server, input="two", previous_response_id=first["id"])
    path = f"/v1/responses/{first['id']}"
    status, error = await server.error(server.post(f"{path}/cancel"))
    assert (status, error["code"]) == (400, "not_cancellable")
    async with server.session.delete(server.base + path) as response:
        deleted = await response.json()
    assert deleted == {"id": first["id"], "object": "response.deleted", "deleted": True}
    for asked in (server.get(path), server.get(f"{path}/input_items"), server.post(f"{path}/cancel")):
        status, error = await server.error(asked)
        assert (status, error["code"]) == (404, "response_not_found")
    for known in (first, second):
        body = {**HELLO, "previous_response_id": known["id"]}
        status, error = await server.error(server.post("/v1/responses", body))
        assert (status, error["code"]) == (400, "previous_response_not_found")
        assert error["param"] == "previous_response_id"
    database = (server.greenroom.home / "responses.db").read_bytes()
    log = server.greenroom.home / "responses.db-wal"
    assert b"a secret word" not in database + (log.read_bytes() if log.exists() else b"")


@pytest.mark.skipif(sys.platform == "darwin", reason="only the processes tell there whose a connection is")
async def test_a_response_is_its_makers_also_where_no_process_can_be_looked_up(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server(*answered(content="Hello."))
    in_a_thread = asyncio.to_thread

    async def never(work: Any, *arguments: Any) -> Any:
        """As on a machine that is so busy that a look-up takes longer than anyone waits."""
        if work.__module__ == "greenroom.runner.http.admission":
            await asyncio.Event().wait()
        return await in_a_thread(work, *arguments)

    with monkeypatch.context() as busy:
        busy.setattr(asyncio, "to_thread", never)
        # This client leaves with its answer.
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{server.base}/v1/responses", json=HELLO) as response,
        ):
            response_id = (await response.json())["id"]
    async with (
        aiohttp.ClientSession() as another_connection,
        another_connection.get(f"{server.base}/v1/responses/{response_id}") as response,
    ):
        assert response.status == 200, await response.text()


async def test_nothing_is_kept_where_that_is_configured(open_server: Any) -> None:
    server = await open_server(store_responses=False)
    async with server.post("/v1/responses", {**HELLO, "store": True}) as response:
        assert response.headers["X-Greenroom-Ignored"] == "store"
        response_id = (await response.json())["id"]
    body = {**HELLO, "previous_response_id": response_id}
    status, error = await server.error(server.post("/v1/responses", body))
    assert (status, error["code"]) == (400, "not_stored")
    assert not (server.greenroom.home / "responses.db").exists()


# the SDK


class Colour(pydantic.BaseModel):
    name: str


async def test_the_sdk_streams_parses_and_reads_back(open_server: Any) -> None:
    import openai

    server = await open_server(*streamed({"content": '{"name":'}, {"content": '"blue"}'}))
    async with openai.AsyncOpenAI(base_url=f"{server.base}/v1", api_key="x", max_retries=0) as client:
        async with client.responses.stream(model="tiny", input="A colour.", text_format=Colour) as stream:
            told = [one async for one in stream]
            final = await stream.get_final_response()
        assert final.output_parsed == Colour(name="blue")
        assert told[-1].type == "response.completed"
        assert (await client.responses.retrieve(final.id)).output_text == '{"name":"blue"}'
        listed = await client.responses.input_items.list(final.id)
        assert [one.type for one in listed.data] == ["message"]
        await client.responses.delete(final.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(final.id)
