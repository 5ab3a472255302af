"""Requests that are refused get their right status and a sentence, and leave no engine behind."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from greenroom.runner.http.daemon import DaemonRoutes
from greenroom.runner.http.port import IGNORED_HEADER, AnyResponse, Request

HELLO = [{"role": "user", "content": "hi"}]
JSON = {"Accept": "application/json"}

BAD_BODIES = {
    "nothing": (b"", "model is required"),
    "broken": (b'{"model": "tiny", "messages": [', "invalid request"),
    "no object": (b"[1, 2]", "invalid request"),
    "nested without end": (
        b'{"model": "tiny", "messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "invalid request: JSON is nested too deeply",
    ),
    "no JSON at all": (b"\xff\xfe\x00", "invalid request"),
    "model is a number": (b'{"model": 7}', "invalid request"),
    "model is missing": (b'{"messages": []}', "model is required"),
    "model is empty": (b'{"model": "  "}', "model is required"),
    "model is no name": (b'{"model": "http://a/b"}', "not a model name"),
}


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 2**16):
        yield body[start : start + 2**16]


async def test_a_bad_body_is_400_with_a_sentence(open_server: Any) -> None:
    server = await open_server()
    for name, (body, said) in BAD_BODIES.items():
        for path in ("/v1/chat/completions", "/engines/v1/completions", "/engines/fake/v1/embeddings"):
            status, error = await server.error(server.session.post(server.base + path, data=body))
            assert status == 400, name
            assert said in error["message"], name
            assert error["type"] == "invalid_request_error"
            assert "Traceback" not in error["message"]
    assert server.greenroom.engines() == ()


async def test_a_model_that_is_not_here_is_404_and_says_how_to_get_it(open_server: Any) -> None:
    server = await open_server()
    status, error = await server.error(server.chat(model="gemma3"))
    assert status == 404
    assert error == {
        "message": 'model "gemma3" is not in the store; run: greenroom pull gemma3',
        "type": "invalid_request_error",
        "code": "model_not_found",
        "param": "model",
    }
    assert server.greenroom.engines() == ()


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
async def test_a_body_of_twenty_megabytes_is_413(open_server: Any, chunked: bool) -> None:
    server = await open_server()
    body = b'{"model": "tiny", "prompt": "' + b"x" * (20 * 2**20) + b'"}'

    headers = {} if chunked else {"Content-Length": str(len(body))}
    asked = server.session.post(f"{server.base}/v1/chat/completions", data=in_pieces(body), headers=headers)
    status, error = await server.error(asked)
    assert status == 413
    assert "10.0 MB" in error["message"]
    await server.nothing_is_held()
    assert server.greenroom.engines() == ()


async def test_a_packed_body_is_not_taken_nor_unpacked(open_server: Any) -> None:
    server = await open_server()
    bomb = gzip.compress(b"\0" * (64 * 2**20))
    for path in ("/v1/chat/completions", "/models/load", "/engines/_configure"):
        asked = server.session.post(
            server.base + path, data=bomb, headers={"Content-Encoding": "gzip", **JSON}
        )
        status, error = await server.error(asked)
        assert (status, error["code"]) == (415, "encoded_body")
    asked = server.session.post(
        f"{server.base}/v1/completions", data=b"x", headers={"Content-Encoding": "br"}
    )
    assert (await server.error(asked))[0] == 415


async def test_a_body_of_megabytes_reaches_the_engine_whole(open_server: Any) -> None:
    server = await open_server("--echo")
    word = "x" * (2 * 2**20)
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": word}]}).encode()
    async with server.session.post(f"{server.base}/v1/chat/completions", data=in_pieces(body)) as response:
        body = await response.json()
    assert body["choices"][0]["message"]["content"].strip() == word


async def test_every_prefix_serves(open_server: Any) -> None:
    server = await open_server()
    for prefix in ("", "/engines", "/engines/fake"):
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            body = {
                "model": "ai/tiny:latest",
                "prompt": "x",
                "input": "x",
                "messages": HELLO,
            }
            async with server.post(prefix + path, body) as response:
                assert response.status == 200, (prefix, path)
    assert {one.spec.mode for one in server.engines()} == {"completion", "embedding"}


async def test_a_path_that_names_a_backend_is_binding(open_server: Any) -> None:
    server = await open_server()
    path = "/engines/absent/v1/chat/completions"
    status, error = await server.error(server.post(path, {"model": "tiny", "messages": HELLO}))
    assert status == 412
    assert error["message"] == (
        'backend "absent" is not installed; run: greenroom install-runner --backend absent'
    )
    assert error["code"] == "backend_not_installed"
    assert error["backend"] == "absent"
    assert server.greenroom.engines() == ()


async def test_an_unknown_backend_is_a_404_that_names_the_known_ones(open_server: Any) -> None:
    server = await open_server()
    path = "/engines/nonsense/v1/chat/completions"
    status, error = await server.error(server.post(path, {"model": "tiny"}))
    assert status == 404
    assert "backend not found" in error["message"]
    assert "fake" in error["message"]


async def test_a_mode_no_backend_has_is_refused(open_server: Any) -> None:
    server = await open_server()
    status, error = await server.error(
        server.post("/rerank", {"model": "tiny", "query": "x", "documents": ["y"]})
    )
    assert 400 <= status < 500
    assert error["message"]


async def test_unknown_paths_and_wrong_methods_are_sentences(open_server: Any) -> None:
    server = await open_server()
    status, error = await server.error(server.post("/v1/nonsense", {}))
    assert (status, error["code"]) == (404, "no_such_path")
    status, error = await server.error(server.get("/v1/chat/completions"))
    assert (status, error["code"]) == (405, "wrong_method")
    async with server.get("/engines/nonsense/x") as response:
        assert response.status == 404
        assert (await response.text()).startswith("There is nothing at ")


async def test_slashes_that_base_urls_have_too_many_do_no_harm(open_server: Any) -> None:
    server = await open_server()
    body = {"model": "tiny", "messages": HELLO}
    for path in ("//v1/chat/completions", "/v1//chat/completions", "/engines/v1/chat/completions/"):
        async with server.post(path, body) as response:
            assert response.status == 200, path
            assert (await response.json())["choices"]
    for path in ("/v1/models/", "//api/tags?x=1", "/models/"):
        async with server.get(path) as response:
            assert response.status == 200, path
    status, error = await server.error(server.get("//v1/chat/completions/"))
    assert (status, error["code"]) == (405, "wrong_method")


async def test_a_base_url_with_the_version_twice_is_named(open_server: Any) -> None:
    server = await open_server()
    for path in ("/v1/v1/chat/completions", "/anthropic/v1/v1/messages"):
        status, error = await server.error(server.post(path, {"model": "tiny", "messages": HELLO}))
        assert status == 404
        assert "leave it out of its base URL" in error["message"]


async def test_preloading_loads_and_sends_nothing(open_server: Any) -> None:
    server = await open_server()
    headers = {"X-Preload-Only": "true"}
    asked = server.post(
        "/v1/chat/completions",
        {"model": "tiny", "messages": HELLO},
        headers=headers,
    )
    async with asked as response:
        assert (response.status, await response.read()) == (200, b"")
    assert server.engines("ready")
    assert (await server.stats())["requests"] == 0
    await server.nothing_is_held()


async def test_docker_cli_gets_500_where_others_get_503(open_server: Any) -> None:
    server = await open_server("--load-forever", max_wait=0.2)
    status, error = await server.error(server.chat())
    assert status == 503
    assert error["message"]
    headers = {"User-Agent": "docker-model-cli/v1"}
    status, error = await server.error(
        server.post("/v1/completions", {"model": "tiny", "prompt": "x"}, headers=headers)
    )
    assert status == 500
    await server.nothing_is_held()


async def test_a_503_says_when_to_retry(open_server: Any) -> None:
    server = await open_server("--load-forever", max_wait=0.2)
    async with server.chat() as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0


async def test_a_request_has_an_id_under_which_the_journal_knows_it(open_server: Any) -> None:
    server = await open_server()
    async with server.chat() as response:
        request_id = response.headers["X-Request-Id"]
    records = server.greenroom.system.journal.read()
    causes = await asyncio.to_thread(lambda: [(record.type, record.cause) for record in records])
    assert ("load_admitted", request_id) in causes or any(cause == request_id for _, cause in causes)


async def test_fields_the_engine_must_not_see_are_dropped_and_the_name_is_translated(
    open_server: Any, frames: Any
) -> None:
    from greenroom.runner.backends.base import Dialect

    dialect = Dialect(model_name="default_model", dropped=frozenset({"draft_model"}))
    server = await open_server("--echo", backend={"dialect": dialect})
    async with server.chat(draft_model="evil") as response:
        body = await response.json()
        assert body["model"] == "tiny"
        assert int(response.headers["Content-Length"]) == len(await response.read())
    status, lines = await server.stream(
        messages=[{"role": "user", "content": '"model": "default_model"'}], draft_model="evil"
    )
    *chunks, done = frames(lines)
    assert (status, done) == (200, "[DONE]")
    assert {chunk["model"] for chunk in chunks} == {"tiny"}
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said.strip() == '"model": "default_model"'


@pytest.mark.parametrize(("expect", "status"), [("100-continue", 200), ("200-ok", 417)])
async def test_what_is_expected_before_the_body_is_answered_in_the_familys_form(
    open_server: Any, expect: str, status: int
) -> None:
    server = await open_server()
    host, port = server.root.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"model": "tiny", "messages": HELLO}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nExpect: {expect}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode())
    if status == 200:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(body)
    answer = await reader.read()
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    content = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert content["choices"] if status == 200 else content["error"]["code"] == "expectation_failed"
    writer.close()


async def test_a_failure_after_the_head_cuts_the_connection(
    open_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: DaemonRoutes, request: Request) -> AnyResponse:
        stream = await request.start(length=100)
        await stream.write(b"a part")
        raise RuntimeError("after the head")

    monkeypatch.setattr(DaemonRoutes, "version", fail)
    server = await open_server()
    host, port = server.root.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with contextlib.suppress(ConnectionResetError):
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
        assert (head[:12], body) == (b"HTTP/1.1 200", b"a part")
    writer.close()


async def test_head_accepts_the_query_parameters_of_get(open_server: Any) -> None:
    server = await open_server()
    async with server.session.head(server.base + "/engines/ps?all=true") as response:
        assert (response.status, await response.read()) == (200, b"")
        assert IGNORED_HEADER not in response.headers
    async with server.session.head(server.base + "/engines/ps?every=true") as response:
        assert response.headers[IGNORED_HEADER] == "every"
    async with server.session.head(server.base + "/engines/ledger?every=true") as response:
        assert response.status == 400
