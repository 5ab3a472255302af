"""The record of requests over HTTP: our own form of it, and Docker's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.http.docker_requests import folded
from waiting import BOUND, until_async


async def listed(server: Any, query: str = "") -> list[dict[str, Any]]:
    async with server.get(f"/requests{query}") as response:
        assert response.status == 200, await response.text()
        return list(await response.json())


async def chat(server: Any, **fields: Any) -> str:
    async with server.chat(**fields) as response:
        await response.read()
        return str(response.headers["X-Request-Id"])


async def docker(server: Any, query: str = "") -> list[dict[str, Any]]:
    async with server.get(f"/engines/requests{query}") as response:
        assert response.status == 200, await response.text()
        return list(await response.json())


async def test_requests_are_listed_and_filtered(open_server: Any) -> None:
    server = await open_server("--tokens", "3", "--load-seconds", "0.2")
    assert await listed(server) == []
    first = await chat(server)
    second = await chat(server, stream=True)
    third = await chat(server, model="nope")
    assert [row["id"] for row in await listed(server)] == [first, second, third]
    for query, found in [
        ("?model=tiny", [first, second]),
        ("?model=docker.io/ai/tiny:latest", [first, second]),
        ("?model=nope", [third]),
        ("?status=404", [third]),
        ("?status=refused", [third]),
        ("?status=2xx&last=1", [second]),
        ("?slow=150ms", [first]),
        ("?since=1h", [first, second, third]),
        ("?since=2100-01-01", []),
        ("?status=running", []),
    ]:
        assert [row["id"] for row in await listed(server, query)] == found, query
    async with server.get(f"/requests/{second}") as response:
        row = await response.json()
    assert (row["id"], row["outcome"], row["request"], row["recorded"]) == (second, "whole", None, False)
    for query in ("?status=nope", "?slow=x", "?since=x", "?last=1001", "?last=-1", "?colour=red"):
        async with server.get(f"/requests{query}") as response:
            assert response.status == 400, query
    async with server.get("/requests/r-00000000-9") as response:
        assert response.status == 404
        assert "no request r-00000000-9 in the record" in await response.text()


async def test_a_request_under_way_is_shown_as_far_as_it_has_come(open_server: Any, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    # The process is looked up while the request waits.
    load = ("--load-seconds", "1")
    server = await open_server(*load, "--tokens", "4", "--hold-after-tokens", "2", "--until", str(go_on))
    async with server.chat(stream=True) as response:
        await response.content.readuntil(b"word1 ")
        name = response.headers["X-Request-Id"]
        (row,) = await listed(server, "?status=running")
        assert (row["id"], row["outcome"], row["status"], row["model"]) == (name, "", 0, "tiny")
        assert row["engine"] == server.engines("ready")[0].spec.engine_id
        assert (row["address"], row["caller_kind"]) == ("127.0.0.1", "process")
        assert "python" in row["caller"]
        assert row["user_agent"].startswith("Python/")
        async with server.get(f"/requests/{name}") as shown:
            assert (await shown.json())["first_token"] > 0
        go_on.touch()
        await response.read()
    assert [row["outcome"] for row in await listed(server)] == ["whole"]


async def test_requests_are_followed_as_they_end(open_server: Any) -> None:
    server = await open_server("--tokens", "3")
    before = await chat(server)
    async with server.get("/requests?follow=true&last=5&model=tiny") as following:
        assert following.content_type == "application/x-ndjson"
        lines = following.content
        async with asyncio.timeout(30):
            assert json.loads(await lines.readline())["id"] == before
            await chat(server, model="nope")
            after = await chat(server)
            assert json.loads(await lines.readline())["id"] == after
    await until_async(lambda: not server.context.record.inside)


@pytest.mark.parametrize("path", ["/requests?follow=true", "/engines/requests", "/logs?follow=true"])
async def test_what_is_followed_ends_in_order_when_the_daemon_stops_and_holds_no_stop_up(
    open_server: Any, path: str
) -> None:
    server = await open_server()
    (server.greenroom.home / "daemon.log").touch()
    async with server.get(path, headers={"Accept": "text/event-stream"}) as following:
        assert following.status == 200
        assert await server.context.clients.empty(BOUND)
        # A connection that is cut raises here.
        await following.read()
    assert await listed(server) == []


async def test_a_client_that_leaves_what_it_follows_is_no_request_of_the_record(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/requests?follow=true") as following:
        assert following.status == 200
    await until_async(lambda: not server.context.record.inside)
    assert await listed(server) == []


async def test_what_is_said_is_recorded_only_as_often_as_was_asked_for(open_server: Any) -> None:
    server = await open_server("--tokens", "3")
    await chat(server)
    async with server.post("/requests/record", {"count": 2, "model": "tiny"}) as response:
        assert await response.json() == {"count": 2, "model": "tiny"}
    names = [await chat(server), await chat(server, stream=True), await chat(server)]
    async with server.get("/requests/record") as response:
        assert await response.json() == {"count": 0, "model": ""}
    assert [row["recorded"] for row in await listed(server, "?model=tiny")] == [False, True, True, False]
    shown = []
    for name in names:
        async with server.get(f"/requests/{name}") as response:
            shown.append(await response.json())
    assert json.loads(shown[0]["request"])["messages"] == [{"role": "user", "content": "hi"}]
    assert "word0 word1 word2" in json.loads(shown[0]["response"])["choices"][0]["message"]["content"]
    assert shown[1]["response"].rstrip().endswith("data: [DONE]")
    assert (shown[2]["request"], shown[2]["response"], shown[2]["cut"]) == (None, None, False)
    (model,) = await docker(server)
    said = [one["response"] for one in model["records"]]
    assert (said[0], said[3]) == (None, None)
    whole = json.loads(said[2])
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"]["content"].split() == ["word0", "word1", "word2"]
    assert whole["choices"][0]["finish_reason"] == "stop"
    for body in ({"count": -1}, {"count": 1_001}, {"count": "all"}, {}, {"count": 1, "models": "tiny"}):
        async with server.post("/requests/record", body) as response:
            assert response.status == 400


async def test_callers_on_other_machines_get_none_of_it(open_server: Any, monkeypatch: Any) -> None:
    server = await open_server()
    monkeypatch.setattr("greenroom.runner.http.port.Request.is_local", False)
    for path in ("/requests", "/requests/r-00000000-1", "/engines/requests", "/requests/record"):
        async with server.get(path) as response:
            assert response.status == 403
    async with server.post("/requests/record", {"count": 1}) as response:
        assert response.status == 403
    assert server.context.record.bodies_left == 0


async def test_where_none_are_recorded_that_is_said(open_server: Any) -> None:
    server = await open_server(record_rows=0)
    for path in ("/requests", "/engines/requests"):
        async with server.get(path) as response:
            assert response.status == 404
            assert "record_rows is 0" in await response.text()


# Docker's


async def test_dockers_form_has_its_shape(open_server: Any) -> None:
    server = await open_server("--tokens", "3")
    assert await docker(server) == []
    await chat(server, model="ai/tiny")
    await chat(server, messages=[{"role": 7}])
    (model,) = await docker(server, "?model=tiny")
    assert [*model] == ["count", "model", "config", "records"]
    assert (model["count"], model["model"], model["config"]) == (2, server.greenroom.models()[0].id, {})
    good, bad = model["records"]
    assert good["id"].startswith(f"{model['model']}_1")
    assert isinstance(good["timestamp"], int)
    assert (good["model"], good["method"], good["url"]) == ("ai/tiny", "POST", "/v1/chat/completions")
    assert (good["request"], good["response"], good["status_code"]) == (None, None, 200)
    assert good["user_agent"].startswith("Python/")
    assert "error" not in good
    assert bad["status_code"] == 400
    assert json.loads(bad["error"])["error"]["code"] == "invalid_type"
    async with server.post("/engines/_configure", {"model": "tiny", "context-size": 512}) as response:
        assert response.status == 202
    for _ in range(12):
        await chat(server)
    (model,) = await docker(server)
    assert (model["count"], model["config"]) == (10, {"context-size": 512})
    async with server.get("/engines/requests?model=nope") as response:
        assert response.status == 404


async def test_dockers_stream_has_its_events(open_server: Any) -> None:
    server = await open_server("--tokens", "3")
    await chat(server)

    async def event(lines: Any) -> tuple[str, Any]:
        name = (await lines.readline()).decode().strip()
        data = (await lines.readline()).decode().strip()
        assert await lines.readline() == b"\n"
        return name, json.loads(data.removeprefix("data: "))

    path = "/engines/requests?include_existing=true&model=tiny"
    async with server.get(path, headers={"Accept": "text/event-stream"}) as response:
        assert response.content_type == "text/event-stream"
        lines = response.content
        async with asyncio.timeout(30):
            name, data = await event(lines)
            assert (name, data[0]["count"], data[0]["model"]) == ("event: existing_request", 1, "tiny")
            assert await event(lines) == ("event: connected", {"status": "connected"})
            # It is the name as it was sent that counts here.
            await chat(server, model="ai/tiny")
            await chat(server)
            name, data = await event(lines)
    assert (name, data[0]["model"], data[0]["records"][0]["model"]) == ("event: new_request", "tiny", "tiny")


async def test_no_event_of_dockers_stream_is_too_long_for_its_own_client(open_server: Any) -> None:
    """Its scanner ends silently at a line of 64 KiB."""
    answer = json.dumps({"choices": [{"message": {"content": "é" * 60_000}}]}, ensure_ascii=False)
    takes = {"allowed_flags": frozenset({"--chat-template-kwargs"})}
    server = await open_server("--answer", "200", answer, backend=takes)
    flags = ["--chat-template-kwargs", json.dumps({"x": "y" * 20_000})]
    async with server.post("/engines/_configure", {"model": "tiny", "runtime-flags": flags}) as response:
        assert response.status == 202, await response.text()
    async with server.post("/requests/record", {"count": 5}) as response:
        assert response.status == 200
    await chat(server, messages=[{"role": "user", "content": "<" * 70_000}])
    await until_async(lambda: not server.context.record.running())
    path = "/engines/requests?include_existing=true"
    async with server.get(path, headers={"Accept": "text/event-stream"}) as response:
        async with asyncio.timeout(30):
            lines = [await response.content.readline() for _ in range(3)]
    assert lines[0] == b"event: existing_request\n"
    assert len(lines[1]) < 64 * 1024
    (entry,) = json.loads(lines[1].removeprefix(b"data: "))
    (record,) = entry["records"]
    assert entry["config"] == {}
    assert record["request"].startswith('{"model":')
    for said in (record["request"], record["response"]):
        assert said.endswith(" chars]")
        assert len(json.dumps(said)) > 19_000
    (whole,) = await docker(server)
    assert len(whole["records"][0]["request"]) > 70_000
    assert whole["config"]["runtime-flags"] == flags


CHUNKS = """\
data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant"}}]}

data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}

data: {"id":"c","choices":[{"index":0,"delta":{"content":"b","reasoning_content":"r"}}]}

data: {"id":"c","choi"""
WHOLE = {
    "id": "c",
    "object": "chat.completion",
    "choices": [
        {
            "message": {"role": "assistant", "content": "ab", "reasoning_content": "r"},
            "index": 0,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ],
}
MESSAGE = """\
event: message_start
data: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":3}}}

event: content_block_delta
data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"ab"}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}
"""


def test_a_recorded_stream_is_folded_into_one_answer() -> None:
    assert folded('{"a": 1}') == '{"a": 1}'
    assert folded("") == ""
    assert json.loads(folded(CHUNKS)) == WHOLE
    assert json.loads(folded(MESSAGE)) == {
        "type": "message",
        "role": "assistant",
        "id": "m",
        "usage": {"input_tokens": 3, "output_tokens": 2},
        "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "ab"}],
    }
