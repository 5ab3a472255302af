"""What has happened, over HTTP: in the words of the commands, which ask it of the daemon that is named."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.cli import main as command_line
from greenroom.runner.http import journal as routes
from greenroom.runner.http.port import Request
from waiting import BOUND


async def events(server: Any, query: str = "") -> list[dict[str, Any]]:
    async with server.get(f"/log{query}") as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "application/x-ndjson"
        return [json.loads(line) for line in (await response.text()).splitlines()]


async def test_the_journal_is_told_as_lines_and_filtered(open_server: Any) -> None:
    server = await open_server()
    assert (await server.stream())[0] == 200

    told = await events(server)

    assert [one["seq"] for one in told] == [*range(1, len(told) + 1)]
    ready = told[-1]
    assert (ready["type"], ready["id"]) == ("engine_ready", "runner/fake/3")
    assert ready["text"].startswith(f"Engine {ready['data']['engine_id']} (tiny on fake) is ready after")
    (engine,) = server.engines("ready")
    started = next(one for one in told if one["type"] == "engine_start_requested")
    about_start = ["load_admitted", "engine_start_requested", "engine_spawned", "engine_ready"]
    for query, types in [
        ("?last=1", ["engine_ready"]),
        (f"?after={ready['seq'] - 1}", ["engine_ready"]),
        (f"?after={told[-2]['id']}", ["engine_ready"]),
        ("?after=1h&last=1", ["engine_ready"]),
        ("?after=now", []),
        ("?kind=engine_ready,engine_spawned", ["engine_spawned", "engine_ready"]),
        ("?model=tiny&kind=engine_*&stream=runner/fake&backend=fake", about_start[1:]),
        (f"?engine={engine.spec.engine_id}&kind=engine_ready", ["engine_ready"]),
        (f"?about={started['id']}", about_start),
        (f"?about={started['seq']}", about_start),
        (f"?cause={started['id']}", about_start[1:]),
        ("?since=1h&last=1", ["engine_ready"]),
        ("?until=2020-01-01", []),
        ("?problems=true&model=tiny", []),
    ]:
        assert [one["type"] for one in await events(server, query)] == types, query
    for query in ("?last=x", "?last=10001", "?after=-1", "?since=x", "?colour=red", "?follow=perhaps"):
        async with server.get(f"/log{query}") as response:
            assert response.status == 400, query
    for query, said in [
        ("?about=nope", "no event, request, engine, backend or model nope."),
        ("?model=tinny", "no model tinny. Did you mean tiny?"),
        (
            f"?after={ready['seq'] + 1}",
            f"There is no event {ready['seq'] + 1}: the last one is {ready['seq']}.",
        ),
        ("?after=daemon/99", "There is no event daemon/99"),
        ("?kind=lod_failed", "no event type lod_failed. Did you mean load_failed?"),
    ]:
        async with server.get(f"/log{query}") as response:
            assert response.status == 404, query
            assert said in await response.text()
    async with server.get(f"/log?after={ready['id']}") as response:
        assert response.headers["X-Greenroom-After"] == str(ready["seq"])
        assert response.headers["X-Greenroom-Journal"]


async def test_news_are_followed_as_events_of_a_stream(open_server: Any) -> None:
    server = await open_server()
    last = (await events(server))[-1]["seq"]
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}

    async with server.get("/log?follow=true&kind=engine_ready", headers=headers) as following:
        assert following.content_type == "text/event-stream"
        assert (await server.stream())[0] == 200
        async with asyncio.timeout(BOUND):
            lines = [(await following.content.readline()).decode().rstrip("\n") for _ in range(4)]

    line = json.loads(lines[2].removeprefix("data: "))
    assert lines == [f"id: {line['seq']}", "event: engine_ready", lines[2], ""]
    assert "is ready" in line["text"]


async def test_only_so_many_clients_follow(open_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "FOLLOWERS", 1)
    server = await open_server()

    async with server.get("/log?follow=true&last=1") as first:
        assert await first.content.readline()
        async with server.get("/log?follow=true") as second:
            assert second.status == 503
            assert "1 clients follow the journal already" in await second.text()


async def test_a_client_that_leaves_keeps_its_turn_until_its_reading_is_done() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def read() -> None:
        begun.set()
        assert go_on.wait(BOUND)

    reading = asyncio.create_task(routes.to_its_end(read))
    await asyncio.to_thread(begun.wait, BOUND)
    reading.cancel()
    await asyncio.sleep(0)
    assert not (await asyncio.wait([reading], timeout=0.05))[0]
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_the_state_at_an_event_is_told_as_json_and_as_text(open_server: Any) -> None:
    server = await open_server()
    assert (await server.stream())[0] == 200
    (ready,) = await events(server, "?kind=engine_ready")

    for at in (ready["id"], ready["seq"]):
        async with server.get(f"/replay?at={at}") as response:
            found = await response.json()
        assert (found["seq"], found["event"], found["type"]) == (ready["seq"], ready["id"], "engine_ready")
    async with server.get("/replay", headers={"Accept": "text/plain"}) as response:
        assert f"After event {ready['seq']}, {ready['id']} (engine_ready)" in await response.text()
    for at, status in (("x", 400), ("scheduler/999", 404), ("9999", 404), ("2020-01-01", 404)):
        async with server.get(f"/replay?at={at}") as response:
            assert response.status == status, at


async def test_why_tells_text_to_those_who_ask_for_it(open_server: Any) -> None:
    server = await open_server()
    assert (await server.stream())[0] == 200

    async with server.get("/why?name=tiny", headers={"Accept": "text/plain"}) as response:
        assert (await response.text()).startswith("tiny is loaded: engine")


async def test_the_bundle_is_an_archive_without_the_requests_of_others(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server()
    assert (await server.stream())[0] == 200

    async def names() -> set[str]:
        async with server.get("/bundle") as response:
            assert response.status == 200
            assert response.headers["Content-Disposition"].startswith('attachment; filename="greenroom-')
            with tarfile.open(fileobj=io.BytesIO(await response.read())) as archive:
                return {one.name.partition("/")[2] for one in archive}

    assert {"README.txt", "journal.jsonl", "why.txt", "requests.jsonl"} <= await names()
    monkeypatch.setattr(Request, "is_local", False)
    assert "requests.jsonl" not in await names()


async def test_the_commands_ask_the_daemon_that_is_named(
    open_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await open_server()
    assert (await server.stream())[0] == 200
    await server.error(server.chat(model="nope"))
    monkeypatch.setenv("GREENROOM_INSTANCE", server.greenroom.instance_id)
    elsewhere = ("--home", str(tmp_path / "elsewhere"), "--host", server.base)

    async def run(*arguments: str) -> tuple[int, str, str]:
        def work() -> tuple[int, str, str]:
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                code = command_line.run([*arguments])
            return code, out.getvalue(), err.getvalue()

        return await asyncio.to_thread(work)

    here = str(server.greenroom.home)
    (ready,) = await events(server, "?kind=engine_ready")
    for command in (
        ["log"],
        ["log", "--json", "-n", "3"],
        ["log", "--problems"],
        ["log", ready["id"], "--kind", "engine_*"],
        ["replay", "--json"],
        ["replay", "--at", ready["id"]],
        ["replay", "--step", "--at", ready["id"], "--json"],
    ):
        there, local = await run(*elsewhere, *command), await run(*command, "--journal", here)
        assert there == local, command
        assert there[0] == 0, command
    code, out, _ = await run(*elsewhere, "why", "tiny")
    assert (code, out[:22]) == (0, "tiny is loaded: engine")
    code, out, _ = await run(*elsewhere, "log", "--summary", "--json")
    assert [one["about"] for one in json.loads(out)["refusals"]] == ["model_not_found"]
    code, _, err = await run(*elsewhere, "log", "nope")
    assert (code, err) == (1, "Error: The journal has no event, request, engine, backend or model nope.\n")
    target = tmp_path / "bundle.tar.gz"
    code, out, _ = await run(*elsewhere, "bundle", "-o", str(target))
    assert code == 0
    assert "journal.jsonl" in out
    assert target.stat().st_mode & 0o777 == 0o600
    code, _, err = await run(*elsewhere, "bundle", "-o", str(target))
    assert (code, "already exists" in err) == (1, True)
