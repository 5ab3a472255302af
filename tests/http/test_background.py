"""Responses that are made in the background: they outlive their clients, and nothing else does."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.http.responses import jobs
from greenroom.runner.http.responses.store import StoredResponse
from greenroom.runner.record.row import Row
from greenroom.runner.record.table import RecordReader, RowFilter
from openai_types import check_response, events_of
from sdk_types import events_in
from waiting import until_async

HELLO = {"model": "tiny", "input": "hi", "background": True}


async def begun(server: Any, **fields: Any) -> dict[str, Any]:
    async with server.post("/v1/responses", {**HELLO, **fields}) as response:
        body = await response.json()
        assert response.status == 200, body
    check_response(body)
    assert (body["status"], body["background"], body["output"]) == ("queued", True, [])
    return dict(body)


async def read(server: Any, response_id: str) -> dict[str, Any]:
    async with server.get(f"/v1/responses/{response_id}") as response:
        body = await response.json()
        assert response.status == 200, body
    check_response(body)
    return dict(body)


async def cancelled(server: Any, response_id: str) -> dict[str, Any]:
    async with server.post(f"/v1/responses/{response_id}/cancel") as response:
        body = await response.json()
        assert response.status == 200, body
    check_response(body)
    return dict(body)


async def events(server: Any, response_id: str, after: int | None = None) -> list[dict[str, Any]]:
    more = "" if after is None else f"&starting_after={after}"
    async with server.get(f"/v1/responses/{response_id}?stream=true{more}") as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        text = await response.text()
    return events_of(text) if after is None else [*events_in(text)]


async def until_status(server: Any, response_id: str, status: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def is_so() -> bool:
        nonlocal found
        found = await read(server, response_id)
        return bool(found["status"] == status)

    await until_async(is_so)
    return found


async def until_ended(server: Any, response_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def is_so() -> bool:
        nonlocal found
        found = await read(server, response_id)
        return found["status"] not in ("queued", "in_progress")

    await until_async(is_so)
    return found


def names(told: list[dict[str, Any]]) -> list[str]:
    return [one["type"].removeprefix("response.") for one in told]


def text_of(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def holding(flags_until: Path, after: int = 2, tokens: int = 4) -> tuple[str, ...]:
    """Flags of a fake engine that stops talking after some tokens until a file is there."""
    held = ("--hold-after-tokens", str(after), "--until", str(flags_until))
    return "--tokens", str(tokens), *held


async def test_a_response_goes_on_without_its_client_and_its_slot_has_its_caller(
    open_server: Any, short_path: Path
) -> None:
    go_on = short_path / "go-on"
    server = await open_server(*holding(go_on))
    response_id = (await begun(server, metadata={"who": "me"}))["id"]
    running = await until_status(server, response_id, "in_progress")
    assert running["metadata"] == {"who": "me"}
    assert server.inside() == 1
    async with server.get("/engines/ps") as response:
        (engine,) = await response.json()
    (slot,) = engine["slots_taken"]
    assert "process" in slot["caller"]
    await asyncio.to_thread(go_on.touch)
    ended = await until_status(server, response_id, "completed")
    assert text_of(ended) == "word0 word1 word2 word3 "
    assert ended["usage"]["output_tokens"] == 4
    assert ended["completed_at"] is not None
    await server.nothing_is_held()
    # It is a response like any other: conversations go on from it.
    async with server.post(
        "/v1/responses", {**HELLO, "background": None, "previous_response_id": response_id}
    ) as r:
        assert r.status == 200, await r.text()


async def test_a_client_may_leave_and_come_back_to_the_events_it_has_not_seen(
    open_server: Any, short_path: Path
) -> None:
    go_on = short_path / "go-on"
    server = await open_server(*holding(go_on))
    seen = b""
    async with server.post("/v1/responses", {**HELLO, "stream": True}) as response:
        assert response.content_type == "text/event-stream"
        while b"word1 " not in seen:
            seen += await response.content.readany()
        response.close()
    first = [*events_in(seen.decode())]
    assert names(first)[:4] == ["created", "queued", "in_progress", "output_item.added"]
    assert [one["response"]["status"] for one in first[:3]] == ["queued", "queued", "in_progress"]
    response_id, last = first[0]["response"]["id"], first[-1]["sequence_number"]
    back = asyncio.create_task(events(server, response_id, last))
    await until_async(lambda: len(server.context.clients) == 2)
    assert server.inside() == 1
    await asyncio.to_thread(go_on.touch)
    rest = await back
    assert [one["sequence_number"] for one in rest][:1] == [last + 1]
    whole = await events(server, response_id)
    assert first + rest == whole
    assert names(whole) == [
        *("created", "queued", "in_progress", "output_item.added", "content_part.added"),
        *(["output_text.delta"] * 4),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert whole[-1]["response"] == await read(server, response_id)
    assert await events(server, response_id, whole[-1]["sequence_number"]) == []


async def test_cancelling_ends_the_generation_and_frees_the_slot(open_server: Any, short_path: Path) -> None:
    server = await open_server(*holding(short_path / "never"))
    response_id = (await begun(server))["id"]
    followed = asyncio.create_task(events(server, response_id))
    await until_async(lambda: server.inside() == 1)
    async with server.get(f"/v1/responses/{response_id}?stream=true") as response:
        await response.content.readuntil(b"word1 ")
    ended = await cancelled(server, response_id)
    assert (ended["status"], text_of(ended)) == ("cancelled", "word0 word1 ")
    assert [one["status"] for one in ended["output"]] == ["incomplete"]
    told = await followed
    assert (told[-1]["type"], told[-1]["response"]) == ("response.incomplete", ended)
    await server.nothing_is_held()
    assert (await server.stats())["aborted"] == 1
    assert await cancelled(server, response_id) == ended
    assert await read(server, response_id) == ended


async def test_a_response_can_be_cancelled_while_its_model_is_loaded(open_server: Any) -> None:
    server = await open_server("--load-forever", progress_after=0.05)
    response_id = (await begun(server))["id"]
    assert (await read(server, response_id))["status"] == "queued"
    async with server.get(f"/v1/responses/{response_id}?stream=true") as response:
        said = (await response.content.readuntil(b"\n\n: waiting")).decode()
        ended = await cancelled(server, response_id)
        said += await response.text()
    assert ended["output"] == []
    assert names([*events_in(said.split("\n\n: ")[0])]) == ["created", "queued"]
    assert '"type":"response.incomplete"' in said
    assert (await read(server, response_id))["status"] == "cancelled"
    await server.nothing_is_held()
    assert server.waiting() == 0


async def test_what_has_ended_stays_as_it_is_when_it_is_cancelled(open_server: Any) -> None:
    server = await open_server()
    response_id = (await begun(server))["id"]
    ended = await until_status(server, response_id, "completed")
    assert await cancelled(server, response_id) == ended
    async with server.post("/v1/responses", {**HELLO, "background": False}) as response:
        waited_for = (await response.json())["id"]
    status, error = await server.error(server.post(f"/v1/responses/{waited_for}/cancel"))
    assert (status, error["code"]) == (400, "not_cancellable")
    status, error = await server.error(server.get(f"/v1/responses/{waited_for}?stream=true"))
    assert (status, error["code"], error["param"]) == (400, "events_not_kept", "stream")
    status, error = await server.error(
        server.get(f"/v1/responses/{response_id}?stream=true&starting_after=x")
    )
    assert (status, error["param"]) == (400, "starting_after")


async def test_deleting_a_response_that_is_made_cancels_it_first(open_server: Any, short_path: Path) -> None:
    server = await open_server(*holding(short_path / "never"))
    response_id = (await begun(server))["id"]
    await until_async(lambda: server.inside() == 1)
    body = {**HELLO, "previous_response_id": response_id}
    status, error = await server.error(server.post("/v1/responses", body))
    assert (status, error["code"]) == (400, "previous_response_not_ended")
    async with server.session.delete(f"{server.base}/v1/responses/{response_id}") as response:
        assert (await response.json())["deleted"] is True
    await server.nothing_is_held()
    for path in (f"/v1/responses/{response_id}", f"/v1/responses/{response_id}?stream=true"):
        status, error = await server.error(server.get(path))
        assert (status, error["code"]) == (404, "response_not_found")


async def test_an_engine_that_dies_makes_the_response_fail(open_server: Any) -> None:
    server = await open_server("--tokens", "9", "--die-after-tokens", "3", "--token-delay", "0.01")
    response_id = (await begun(server))["id"]
    failed = await until_status(server, response_id, "failed")
    assert failed["error"]["code"] == "server_error"
    assert "SIGKILL" in failed["error"]["message"]
    told = await events(server, response_id)
    assert names(told)[-2:] == ["error", "failed"]
    assert told[-1]["response"] == failed


async def test_what_the_scheduler_refuses_makes_the_response_fail(open_server: Any) -> None:
    server = await open_server("--die-in-load", "3")
    response_id = (await begun(server))["id"]
    failed = await until_status(server, response_id, "failed")
    assert names(await events(server, response_id)) == ["created", "queued", "error", "failed"]
    assert failed["error"]["message"]
    assert failed["output"] == []


async def test_what_can_be_refused_at_once_is_never_queued(open_server: Any) -> None:
    server = await open_server()
    for fields, status, param in (
        ({"store": False}, 400, "store"),
        ({"model": "unknown"}, 404, "model"),
        ({"temperature": 9}, 400, "temperature"),
        ({"previous_response_id": "resp_none"}, 400, "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": "none"}]}, 404, "input[0].id"),
    ):
        for stream in (False, True):
            asked = server.post("/v1/responses", {**HELLO, "stream": stream, **fields})
            found, error = await server.error(asked)
            assert (found, error["param"]) == (status, param), error
    status, error = await server.error(server.post("/engines/none/v1/responses", HELLO))
    assert (status, error["code"]) == (404, "backend_not_found")
    assert not (server.greenroom.home / "responses.db").exists()
    server = await open_server(store_responses=False)
    status, error = await server.error(server.post("/v1/responses", HELLO))
    assert (status, error["code"], error["param"]) == (400, "not_stored", "background")


async def test_only_its_maker_sees_streams_or_cancels_a_response(
    open_server: Any, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server(*holding(short_path / "never"))

    async def owner(request: Any) -> str:
        return f"key:{request.headers['X-Test']}"

    monkeypatch.setattr(server.context.callers, "owner", owner)
    server.session.headers["X-Test"] = "me"
    response_id = (await begun(server))["id"]
    path = f"/v1/responses/{response_id}"
    server.session.headers["X-Test"] = "another"
    for asked in (
        *(server.get(path), server.get(f"{path}?stream=true"), server.get(f"{path}/input_items")),
        *(server.post(f"{path}/cancel"), server.session.delete(server.base + path)),
    ):
        status, error = await server.error(asked)
        assert (status, error["code"]) == (404, "response_not_found")
    await until_async(lambda: server.inside() == 1)
    server.session.headers["X-Test"] = "me"
    assert (await cancelled(server, response_id))["status"] == "cancelled"


async def test_there_are_only_so_many_for_one_caller_and_in_all(
    open_server: Any, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = short_path / "go-on"
    server = await open_server(*holding(go_on))

    async def owner(request: Any) -> str:
        return f"key:{request.headers['X-Test']}"

    monkeypatch.setattr(server.context.callers, "owner", owner)
    monkeypatch.setattr(jobs, "MOST", 3)
    monkeypatch.setattr(jobs, "MOST_EACH", 2)
    ids = []
    for caller, most in (("one", 2), ("another", 1)):
        server.session.headers["X-Test"] = caller
        ids += [(caller, (await begun(server))["id"]) for _ in range(most)]
        status, error = await server.error(server.post("/v1/responses", HELLO))
        assert (status, error["code"]) == (429, "too_many_background_responses")
        assert error["retry_after"] > 0
    await asyncio.to_thread(go_on.touch)
    for caller, response_id in ids:
        server.session.headers["X-Test"] = caller
        await until_status(server, response_id, "completed")
    await begun(server)


async def test_a_response_that_takes_too_long_or_grows_too_large_is_ended(
    open_server: Any, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server(*holding(short_path / "never"))
    await begun(server)
    await until_async(lambda: server.inside() == 1)
    monkeypatch.setattr(jobs, "LONGEST", 0.2)
    late = (await begun(server))["id"]
    failed = await until_status(server, late, "failed")
    assert "took more than" in failed["error"]["message"]
    monkeypatch.setattr(jobs, "LONGEST", 60.0)
    monkeypatch.setattr(jobs, "MOST_BYTES", 3000)
    large = (await begun(server))["id"]
    failed = await until_status(server, large, "failed")
    assert "more than 3" in failed["error"]["message"]
    assert server.inside() == 1


async def test_events_are_kept_only_so_long_and_so_large_and_the_response_longer(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server()
    first, second = [(await begun(server))["id"] for _ in range(2)]
    for one in (first, second):
        await until_status(server, one, "completed")
        assert names(await events(server, one))[-1] == "completed"
    monkeypatch.setattr(jobs, "MOST_BYTES_IN_ALL", 9_000)
    monkeypatch.setattr(jobs, "FOLLOWED", 0.05)
    third = (await begun(server))["id"]
    await until_status(server, third, "completed")
    for one in (first, third):

        async def is_forgotten(one: str = one) -> bool:
            async with server.get(f"/v1/responses/{one}?stream=true") as response:
                return bool(response.status == 400)

        await until_async(is_forgotten)
        assert (await read(server, one))["status"] == "completed"


async def test_a_daemon_that_stops_says_so_in_the_response(open_server: Any, short_path: Path) -> None:
    server = await open_server(*holding(short_path / "never"))
    response_id = (await begun(server))["id"]
    followed = asyncio.create_task(events(server, response_id))
    await until_async(lambda: server.inside() == 1 and len(server.context.clients) == 2)
    assert not await server.context.clients.empty(0.05)
    server.context.clients.dismiss()
    told = await followed
    assert names(told)[-2:] == ["error", "failed"]
    failed = await read(server, response_id)
    assert "shutting down" in failed["error"]["message"]
    assert told[-1]["response"] == failed
    await server.nothing_is_held()


async def test_a_client_that_leaves_before_its_response_is_queued_leaves_nothing(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server()

    async def look(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(server.context.abilities, "look", look)
    asked = asyncio.create_task(begun(server))
    await until_async(lambda: len(server.context.clients) == 2)
    asked.cancel()
    await server.nothing_is_held()
    assert not (server.greenroom.home / "responses.db").exists()


async def test_what_is_made_behind_another_front_door_is_cancelled_there(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server()

    async def owner(*_: Any) -> str:
        return "key:me"

    monkeypatch.setattr(server.context.callers, "owner", owner)
    made = {"id": "resp_1", "status": "in_progress", "background": True, "output": []}
    await server.context.responses.begin(StoredResponse("key:me", [], made))
    status, error = await server.error(server.post("/v1/responses/resp_1/cancel"))
    assert (status, error["code"]) == (409, "made_elsewhere")


@pytest.mark.parametrize("how", [read, cancelled])
async def test_one_that_ends_while_it_is_looked_up_is_told_as_it_has_ended(
    open_server: Any, short_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    go_on = short_path / "go-on"
    server = await open_server(*holding(go_on))
    response_id = (await begun(server))["id"]
    await until_async(lambda: server.inside() == 1)
    (under_way,) = server.context.record.inside
    get = server.context.responses.get

    async def late(*asked: Any) -> Any:
        found = await get(*asked)
        await asyncio.to_thread(go_on.touch)
        await until_async(lambda: under_way not in server.context.record.inside)
        return found

    monkeypatch.setattr(server.context.responses, "get", late)
    assert (await how(server, response_id))["status"] == "completed"


async def test_whatever_happens_to_them_all_come_to_an_end_and_nothing_is_held(open_server: Any) -> None:
    server = await open_server("--tokens", "20", "--token-delay", "0.003", "--load-seconds", "0.3")
    chance = random.Random(7)

    async def one() -> dict[str, Any] | None:
        await asyncio.sleep(chance.uniform(0, 0.4))
        response_id = (await begun(server))["id"]
        await asyncio.sleep(chance.uniform(0, 0.4))
        match chance.choice(("leave", "cancel", "delete", "follow", "abandon")):
            case "cancel":
                await asyncio.gather(*(cancelled(server, response_id) for _ in range(2)))
            case "delete":
                async with server.session.delete(f"{server.base}/v1/responses/{response_id}") as response:
                    assert response.status == 200
                return None
            case "follow":
                assert names(await events(server, response_id))[-1] == "completed"
            case "abandon":
                async with server.get(f"/v1/responses/{response_id}?stream=true") as response:
                    await response.content.readany()
                    response.close()
        return await until_ended(server, response_id)

    found = await asyncio.gather(*(one() for _ in range(30)))
    await server.nothing_is_held()
    ended = [one for one in found if one is not None]
    # On a busy machine all may be complete before they are cancelled.
    assert {one["status"] for one in ended} <= {"completed", "cancelled"}
    for response in ended:
        assert (await events(server, response["id"]))[-1]["response"] == response


async def test_the_record_has_one_row_for_it_which_ends_with_it(open_server: Any, short_path: Path) -> None:
    go_on = short_path / "go-on"
    server = await open_server(*holding(go_on))
    async with server.post("/v1/responses", HELLO) as response:
        first, name = (await response.json())["id"], response.headers["X-Request-Id"]
    await until_async(lambda: server.inside() == 1)
    (running,) = server.context.record.running()
    assert (running.id, running.model, running.outcome) == (name, "tiny", "")
    await cancelled(server, first)
    await asyncio.to_thread(go_on.touch)
    second = (await begun(server, stream=None))["id"]
    await until_status(server, second, "completed")
    await server.nothing_is_held()
    await server.context.record.written()

    def read() -> list[Row]:
        with RecordReader(server.greenroom.home) as reader:
            return [row for row in reader.rows(RowFilter()) if row.path == "/v1/responses"]

    rows = await asyncio.to_thread(read)
    assert [(row.id == name, row.status, row.outcome) for row in rows] == [
        (True, 200, "cancelled"),
        (False, 200, "whole"),
    ]
    assert (rows[1].tokens_out, rows[1].caller_kind, rows[1].asked) == (4, "process", "tiny")
    assert rows[1].first_token is not None


async def test_tools_that_are_done_here_work_in_the_background(open_server: Any) -> None:
    said = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    chunks = [{"choices": [{"index": 0, "delta": {"content": said}, "finish_reason": "stop"}]}]
    lines = "".join(f"data: {json.dumps(chunk)}\\n\\n" for chunk in chunks)
    server = await open_server("--stream", f"{lines}data: [DONE]\\n\\n")
    tools = [{"type": "function", "name": "add", "parameters": {"type": "object"}}]
    response_id = (await begun(server, tools=tools))["id"]
    (call,) = (await until_status(server, response_id, "completed"))["output"]
    assert (call["type"], call["name"]) == ("function_call", "add")
    assert json.loads(call["arguments"]) == {"a": 1}


# the SDK


async def test_the_sdk_polls_streams_resumes_and_cancels(open_server: Any, short_path: Path) -> None:
    import openai

    go_on = short_path / "go-on"
    server = await open_server(*holding(go_on))
    async with openai.AsyncOpenAI(base_url=f"{server.base}/v1", api_key="x", max_retries=0) as client:
        made = await client.responses.create(model="tiny", input="hi", background=True)
        assert made.status == "queued"
        assert (await client.responses.cancel(made.id)).status == "cancelled"
        stream = await client.responses.create(model="tiny", input="hi", background=True, stream=True)
        last, response_id = -1, ""
        async for event in stream:
            last = event.sequence_number
            if event.type == "response.created":
                response_id = event.response.id
            if event.type == "response.output_text.delta" and event.delta == "word1 ":
                break
        await stream.close()
        assert (await client.responses.retrieve(response_id)).status == "in_progress"
        await asyncio.to_thread(go_on.touch)
        resumed = await client.responses.retrieve(response_id, stream=True, starting_after=last)
        rest = [event async for event in resumed]
        assert [one.sequence_number for one in rest] == [*range(last + 1, last + 1 + len(rest))]
        assert rest[-1].type == "response.completed"
        assert rest[-1].response.output_text == "word0 word1 word2 word3 "
        async with client.responses.stream(response_id=response_id, starting_after=last) as whole:
            told = [event.type async for event in whole]
            assert (await whole.get_final_response()).output_text == "word0 word1 word2 word3 "
        assert told[-1] == "response.completed"
