"""What stands in the record of requests about those that the front door has served."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.record.row import Row
from greenroom.runner.record.table import FILE, RecordReader, RowFilter
from waiting import until_async


async def recorded(server: Any, wanted: RowFilter | None = None) -> list[Row]:
    await server.context.record.written()

    def read() -> list[Row]:
        with RecordReader(server.greenroom.home) as reader:
            return reader.rows(wanted or RowFilter())

    return await asyncio.to_thread(read)


async def the_row(server: Any) -> Row:
    return (await recorded(server))[-1]


async def test_a_streamed_chat_is_recorded_with_its_times_and_tokens(open_server: Any) -> None:
    server = await open_server("--tokens", "12", "--load-seconds", "0.3", "--token-delay", "0.01")
    async with server.chat(stream=True) as response:
        await response.text()
        name = response.headers["X-Request-Id"]
    row = await the_row(server)
    assert row.id == name
    assert (row.method, row.path, row.family) == ("POST", "/v1/chat/completions", "openai")
    assert (row.status, row.outcome, row.code) == (200, "whole", "")
    assert (row.asked, row.model, row.backend) == ("tiny", "tiny", "fake")
    assert row.model_id.startswith("sha256:")
    assert row.engine == server.engines("ready")[0].spec.engine_id
    assert (row.address, row.caller_kind) == ("127.0.0.1", "process")
    assert "python" in row.caller
    assert row.user_agent.startswith("Python/")
    assert row.loading >= 0.3
    assert row.first_token is not None
    assert row.loading <= row.first_token <= row.seconds - 0.1
    # Nothing is added to a request for it: the engine told no usage, so pieces are counted.
    assert (row.tokens_in, row.tokens_out, row.estimated) == (None, 12, True)
    assert row.tokens_per_second is not None
    assert 10 < row.tokens_per_second < 121
    async with server.chat(stream=True, stream_options={"include_usage": True}) as response:
        await response.text()
    row = await the_row(server)
    assert (row.tokens_out, row.estimated, row.queued, row.loading) == (12, False, 0, 0)
    assert row.tokens_in is not None


async def test_a_whole_answer_tells_its_tokens_too(open_server: Any) -> None:
    server = await open_server("--tokens", "7")
    async with server.chat() as response:
        assert response.status == 200
    row = await the_row(server)
    assert (row.outcome, row.tokens_out, row.estimated, row.first_token) == ("whole", 7, False, None)


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("/v1/completions", "openai"),
        ("/engines/fake/v1/chat/completions", "openai"),
        ("/v1/responses", "openai"),
        ("/v1/messages", "anthropic"),
        ("/api/chat", "ollama"),
        ("/api/generate", "ollama"),
    ],
)
async def test_every_family_is_recorded(open_server: Any, path: str, family: str) -> None:
    server = await open_server("--tokens", "6")
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "a word that nothing keeps"}],
    }
    if path.endswith(("completions", "generate")) and "chat" not in path:
        body = {"model": "tiny", "prompt": "a word that nothing keeps"}
    if path.endswith("responses"):
        body = {"model": "tiny", "input": "a word that nothing keeps"}
    if path.endswith("messages"):
        body["max_tokens"] = 99
    for stream in (True, False):
        async with server.post(path, body | {"stream": stream}) as response:
            assert response.status == 200, await response.text()
            await response.text()
        row = await the_row(server)
        assert (row.family, row.outcome, row.asked, row.model) == (family, "whole", "tiny", "tiny")
        assert row.tokens_out == 6
        assert (row.first_token is not None) == stream
    await server.context.record.close()

    def whole() -> bytes:
        return b"".join(file.read_bytes() for file in server.greenroom.home.glob(f"{FILE}*"))

    written = await asyncio.to_thread(whole)
    assert b"tiny" in written
    assert b"nothing keeps" not in written
    assert b"word3" not in written


async def test_refusals_are_recorded_with_their_sentence(open_server: Any) -> None:
    server = await open_server()
    for asked, status, code in [
        (server.chat(model="nope"), 404, "model_not_found"),
        (server.chat(messages=[{"role": 7}]), 400, "invalid_type"),
        (server.get("/nothing/here"), 404, "no_such_path"),
        (server.get("/livez", headers={"Host": "elsewhere.example"}), 403, "host_not_allowed"),
        (server.post("/models/create", {"from": "file:/nowhere.gguf"}), 404, "not_found"),
    ]:
        async with asked as response:
            assert response.status == status, await response.text()
            name = response.headers["X-Request-Id"]
        row = await the_row(server)
        assert (row.id, row.status, row.outcome) == (name, status, "refused")
        assert row.code == code
        assert row.sentence.endswith((".", "here", "nope"))
    found = await recorded(server, RowFilter(status="404"))
    assert [row.asked for row in found] == ["nope", "", ""]
    assert found[0].caller == "127.0.0.1"


async def test_a_client_that_leaves_and_an_engine_that_dies_are_told_apart(open_server: Any) -> None:
    server = await open_server("--tokens", "1000000", "--token-delay", "0.01", "--die-of", "arsenic")
    response = await server.chat(stream=True)
    await response.content.readuntil(b"word3 ")
    response.close()
    await until_async(lambda: not server.inside())
    row = await the_row(server)
    assert (row.outcome, row.status, row.code) == ("left", 499, "")
    assert row.tokens_out is not None
    assert row.tokens_out >= 3
    status, _ = await server.error(server.chat(messages=[{"role": "user", "content": "arsenic"}]))
    row = await the_row(server)
    assert (row.outcome, row.status) == ("died", status)
    assert "ended" in row.sentence


async def test_a_stream_whose_engine_dies_is_no_whole_answer(open_server: Any) -> None:
    server = await open_server("--tokens", "9", "--die-after-tokens", "4")
    await server.stream()
    row = await the_row(server)
    assert (row.status, row.outcome) == (200, "died")
    assert "in mid-stream" in row.sentence
    assert row.tokens_out == 3


async def test_the_time_in_a_queue_is_no_time_of_loading(open_server: Any, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    flags = ("--tokens", "3", "--hold-after-tokens", "1", "--until", str(go_on))
    server = await open_server(*flags, backend={"slots": 1})
    first = asyncio.create_task(server.stream())
    await until_async(lambda: server.inside() == 1)
    second = asyncio.create_task(server.stream())
    await until_async(lambda: server.waiting() == 1)
    running = {row.id: row for row in server.context.record.running()}
    assert [row.outcome for row in running.values()] == ["", ""]
    await asyncio.sleep(0.1)
    go_on.touch()
    await asyncio.gather(first, second)
    one, other = await recorded(server)
    assert one.loading > 0
    assert one.queued < other.queued
    assert other.queued >= 0.1
    assert other.loading == 0


async def test_a_command_is_recorded_and_a_read_is_not(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/engines/ps"), server.get("/v1/models"):
        pass
    async with server.post("/engines/unload", {"all": True}) as response:
        assert response.status == 200
    rows = await recorded(server)
    assert [(row.method, row.path, row.family) for row in rows] == [("POST", "/engines/unload", "management")]


async def test_nothing_is_recorded_where_it_is_turned_off(open_server: Any) -> None:
    server = await open_server(record_for=0.0)
    async with server.chat() as response:
        assert response.status == 200
    await server.context.record.written()
    assert not await asyncio.to_thread((server.greenroom.home / FILE).exists)


async def test_requests_that_end_with_the_daemon_are_recorded(open_server: Any) -> None:
    server = await open_server("--tokens", "1000000", "--token-delay", "0.01")
    response = await server.chat(stream=True)
    await response.content.readuntil(b"word1 ")
    server.context.clients.dismiss()
    async with asyncio.timeout(30):
        assert "shutting down" in await response.text()
    row = await the_row(server)
    assert (row.outcome, row.code) == ("cancelled", "stopping")
