"""Routes of Docker Model Runner beside inference and the store: logs, metrics, base URLs, names."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from greenroom.actors.library.messages import TagModel
from greenroom.runner.http.engine_metrics import merged
from greenroom.runner.http.logs import Log
from waiting import until_async

DOCKER = {"User-Agent": "docker-model-cli/v1.2.3"}


@pytest.mark.parametrize("base", ["/", "/v1", "/engines/v1", "/engines/fake/v1", "/anthropic", "/api"])
async def test_each_base_url_answers(open_server: Any, base: str) -> None:
    server = await open_server()
    async with server.get(base) as response:
        assert (response.status, await response.text()) == (200, "Greenroom is running")
    async with server.session.head(server.base + base) as response:
        assert response.status == 200


async def test_responses_have_all_prefixes_of_the_contract(open_server: Any) -> None:
    server = await open_server()
    body = {"model": "tiny", "input": "hi"}
    for path in ("/responses", "/engines/responses", "/v1/responses", "/engines/fake/v1/responses"):
        async with server.post(path, body) as response:
            made = await response.json()
            assert response.status == 200, made
        async with server.get(f"{path}/{made['id']}") as response:
            assert (await response.json())["id"] == made["id"]
        status, error = await server.error(server.post(path, {"model": "tiny"}))
        assert (status, error["param"]) == (400, "input")


@pytest.mark.parametrize("prefix", ["", "/engines", "/engines/fake"])
async def test_what_nothing_here_serves_is_said_with_what_would(open_server: Any, prefix: str) -> None:
    server = await open_server()
    for path in ("audio/transcriptions", "audio/speech", "images/generations", "moderations"):
        async with server.session.post(f"{server.base}{prefix}/v1/{path}", data=b"not JSON") as response:
            error = (await response.json())["error"]
        assert (response.status, error["code"], error["param"]) == (404, "not_offered", None)
        assert "serve" in error["message"] or "model" in error["message"]


async def test_purging_as_dockers_command_line_does_it(open_server: Any) -> None:
    server = await open_server()
    async with server.chat() as response:
        assert response.status == 200
    await server.nothing_is_held()
    body = {"all": True, "backend": "", "models": None}
    async with server.post("/engines/unload", body, headers=DOCKER) as response:
        assert (await response.json())["unloaded_runners"] == 1
    await until_async(lambda: not server.engines())
    async with server.session.delete(f"{server.base}/models/purge", headers=DOCKER) as response:
        assert (response.status, await response.read()) == (200, b"")
    assert server.greenroom.models() == ()


async def test_dockers_list_finds_a_model_by_its_short_name(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/models", headers=DOCKER) as response:
        (model,) = await response.json()
    assert "ai/tiny:latest" in model["tags"]
    async with server.get("/models") as response:
        (model,) = await response.json()
    assert "docker.io/ai/tiny:latest" in model["tags"]


# logs


def test_a_log_is_read_once_across_its_files(tmp_path: Any) -> None:
    new, old = tmp_path / "log", tmp_path / "log.1"
    log = Log("x", [old, new])
    assert log.new_lines() == []
    new.write_bytes(b"one\ntwo\nthr")
    assert log.new_lines() == ["one", "two"]
    with new.open("ab") as file:
        file.write(b"ee\nfo")
    new.replace(old)
    new.write_bytes(b"ur\n10%\r20%\n\x1b[2J\xff\nrest")
    assert log.new_lines() == ["three", "four", "20%", "\\u001b[2J\ufffd"]
    assert log.new_lines() == []
    assert log.last_line() == ["rest"]
    assert log.last_line() == []


async def test_the_logs_are_the_daemons_and_its_engines(open_server: Any) -> None:
    server = await open_server("--say", "hello from \x1b[31mthe engine")
    async with server.get("/logs") as response:
        assert (response.status, await response.text()) == (
            404,
            "service log not found: no daemon writes one here.\n",
        )
    own = server.greenroom.home / "daemon.log"
    await asyncio.to_thread(own.write_text, "first\nsecond\n")
    async with server.chat() as response:
        assert response.status == 200
    async with server.get("/logs") as response:
        assert response.content_type == "text/plain"
        said = await response.text()
    assert said.startswith("==> daemon <==\nfirst\nsecond\n\n==> fake ")
    assert "hello from \\u001b[31mthe engine\n" in said
    async with server.get("/logs?no-engines=true&tail=1") as response:
        assert await response.text() == "second\n"
    async with server.get("/logs?no-engines&tail=0") as response:
        assert await response.text() == ""
    for query in ("tail=-1", "tail=many", "follow=maybe"):
        async with server.get(f"/logs?{query}") as response:
            assert response.status == 400, query


async def test_a_log_that_is_followed_goes_on_until_the_client_leaves(open_server: Any) -> None:
    server = await open_server()
    own = server.greenroom.home / "daemon.log"
    await asyncio.to_thread(own.write_text, "first\n")
    async with asyncio.timeout(60), server.get("/logs?follow=true&no-engines=false") as response:
        assert await response.content.readline() == b"first\n"
        await asyncio.to_thread(own.replace, own.with_name("daemon.log.1"))
        await asyncio.to_thread(own.write_text, "second\n")
        assert await response.content.readline() == b"second\n"
        assert len(server.context.clients) == 1
        response.close()
    await until_async(lambda: not len(server.context.clients))


# metrics


async def test_the_engines_own_metrics_have_labels_that_tell_them_apart(open_server: Any) -> None:
    server = await open_server()
    async with server.get("/metrics") as response:
        assert await response.text() == "# No active runners\n"
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    async with server.chat() as response:
        assert response.status == 200
    async with server.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    labels = 'backend="fake",model="tiny",mode="completion"'
    assert lines == [
        "# HELP fake:tokens_total Tokens generated.",
        "# TYPE fake:tokens_total counter",
        f"fake:tokens_total{{{labels}}} 5",
        "# TYPE fake:seconds histogram",
        f'fake:seconds_bucket{{{labels},le="+Inf",exported_model="own}}"}} 1',
        f"fake:seconds_sum{{{labels}}} 0.5",
    ]


def test_each_family_comes_once_with_the_samples_of_all_engines() -> None:
    text = "# TYPE a gauge\na 1\nnonsense {\n# a comment\nb 2 1700000000\n"
    found = merged([({"model": 'x"y'}, text), ({"model": "z"}, text)])
    assert found.splitlines() == [
        "# TYPE a gauge",
        'a{model="x\\"y"} 1',
        'a{model="z"} 1',
        'b{model="x\\"y"} 2 1700000000',
        'b{model="z"} 2 1700000000',
    ]


# names


async def test_every_name_of_a_model_is_listed_and_an_answer_has_the_one_that_was_asked(
    open_server: Any,
) -> None:
    server = await open_server()
    (model,) = server.greenroom.models()
    await server.greenroom.system.ask(TagModel(model_id=model.id, tag="registry.example/org/m:v1"))
    async with server.get("/v1/models") as response:
        listed = [one["id"] for one in (await response.json())["data"]]
    assert sorted(listed) == ["docker.io/ai/tiny:latest", "registry.example/org/m:v1"]
    async with server.get("/v1/models", headers={"anthropic-version": "2023-06-01"}) as response:
        assert [one["id"] for one in (await response.json())["data"]] == listed
    for name in (*listed, "tiny", "tiny:latest", "Tiny", "m:v1", model.id, model.id[7:19]):
        async with server.get(f"/v1/models/{name}") as response:
            assert (await response.json())["id"] == name
        async with server.get(f"/models/{name}") as response:
            assert (await response.json())["id"] == model.id
        async with server.post("/api/show", {"model": name}) as response:
            assert response.status == 200
        async with server.chat(model=name) as response:
            assert (await response.json())["model"] == name
        async with server.post("/v1/messages", {**MESSAGE, "model": name}) as response:
            assert (await response.json())["model"] == name
        async with server.post("/v1/responses", {"model": name, "input": "hi"}) as response:
            assert (await response.json())["model"] == name
    assert len(server.engines()) == 1


async def test_the_prefix_of_docker_desktop_is_left_out_of_account(open_server: Any) -> None:
    server = await open_server()
    for path in ("/exp/vDD4.40/engines/v1/models", "/exp/vDD4.40/models", "/exp/vDD4.40/engines/status"):
        async with server.get(path) as response:
            assert response.status == 200, path
    async with server.post("/exp/vDD4.40/engines/v1/chat/completions", {"model": "absent"}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")


async def test_a_method_that_a_path_does_not_have_is_answered_with_those_that_it_has(
    open_server: Any,
) -> None:
    server = await open_server()
    for method, path, allowed in (
        ("GET", "/v1/chat/completions", "POST"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
        ("PUT", "/api/chat", "POST"),
    ):
        async with server.session.request(method, server.base + path) as response:
            assert (response.status, response.headers["Allow"]) == (405, allowed)


async def test_every_family_offers_the_names_that_may_have_been_meant(open_server: Any) -> None:
    server = await open_server()
    asked = {"model": "ai/tinny:7b"}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": MESSAGE["messages"]},
        "/v1/completions": {"prompt": "hi"},
        "/v1/embeddings": {"input": "hi"},
        "/v1/responses": {"input": "hi"},
        "/v1/messages": MESSAGE,
        "/v1/messages/count_tokens": MESSAGE,
        "/api/chat": {"messages": MESSAGE["messages"]},
        "/api/generate": {"prompt": "hi"},
        "/api/embed": {"input": "hi"},
        "/api/show": {},
        "/rerank": {"query": "q", "documents": ["a"]},
        "/v1/rerank": {"query": "q", "documents": ["a"]},
        "/score": {"text_1": "a", "text_2": "b"},
        "/tokenize": {"content": "hi"},
    }
    for path, body in bodies.items():
        async with server.post(path, asked | body) as response:
            assert response.status == 404, path
            said = await response.text()
            assert "Did you mean tiny?" in said, path
            assert ("greenroom pull ai/tinny:7b" in said) != path.startswith("/api/")
    for path in ("/v1/models/tinny", "/models/tinny", "/props?model=tinny"):
        async with server.get(path) as response:
            assert response.status == 404
            assert "Did you mean tiny? Or run: greenroom pull tinny" in await response.text(), path


MESSAGE: dict[str, Any] = {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
