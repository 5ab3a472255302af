"""Fields of other servers on vLLM are read, refused by name, or listed as ignored."""

from __future__ import annotations

from typing import Any

from greenroom.runner.backends.discovery import BACKENDS

VLLM = {"dialect": BACKENDS["vllm"].dialect}
HELLO = {"messages": [{"role": "user", "content": "hi"}]}
LONG = "cat " * 40


async def test_an_input_that_is_too_long_is_cut_by_vllms_own_count_or_refused(open_server: Any) -> None:
    server = await open_server("--context", "12", "--like-vllm", backend=VLLM)
    for more in ({}, {"truncate": True}):
        async with server.post("/api/embed", {"model": "tiny", "input": [LONG, "a b"], **more}) as response:
            said = await response.json()
            assert (response.status, said["prompt_eval_count"]) == (200, 16), said
    assert (await server.stats())["last"]["input"] == [[101, *[1003] * 10, 102], "a b"]
    async with server.post("/api/embed", {"model": "tiny", "input": LONG, "truncate": False}) as response:
        error = (await response.json())["error"]
        assert (response.status, "has 42 tokens" in error, "at most 12" in error) == (400, True, True), error
    # Its own field for the same, on the routes that it speaks itself.
    body = {"model": "tiny", "input": "a b", "truncate_prompt_tokens": 3}
    async with server.post("/v1/embeddings", body) as response:
        assert response.status == 200
        assert "X-Greenroom-Ignored" not in response.headers
    assert (await server.stats())["last"]["truncate_prompt_tokens"] == 3
    status, error = await server.error(server.post("/v1/embeddings", {"model": "tiny", "input": LONG}))
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "input")


async def test_what_vllm_would_ignore_is_refused_by_name_before_anything_is_loaded(open_server: Any) -> None:
    server = await open_server(backend=VLLM)
    for path, fields, param in (
        ("/v1/completions", {"prompt": "a", "best_of": 2}, "best_of"),
        ("/v1/completions", {"prompt": "a", "best_of": 2, "n": 2, "stream": True}, "best_of"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("/v1/completions", {"prompt": "a", "grammar": "root ::= [a]"}, "grammar"),
        ("/v1/chat/completions", {**HELLO, "json_schema": {"type": "object"}}, "json_schema"),
    ):
        status, error = await server.error(server.post(path, {"model": "tiny", **fields}))
        assert (status, error["param"]) == (400, param), error
        assert error["message"].startswith(f"{param}: fake cannot do this.")
    assert not server.engines()


async def test_what_changes_nothing_passes_or_is_listed(open_server: Any) -> None:
    server = await open_server(backend=VLLM)
    for path, fields, listed in (
        ("/v1/completions", {"prompt": "a", "best_of": 1, "suffix": ""}, None),
        ("/v1/completions", {"prompt": "a", "best_of": None, "suffix": None}, None),
        ("/v1/chat/completions", {**HELLO, "typical_p": 0.5, "mirostat": 1}, "mirostat, typical_p"),
        ("/v1/chat/completions", {**HELLO, "truncate_prompt_tokens": 9, "top_k": 5}, None),
        ("/v1/responses", {"input": "a", "truncation": "auto"}, "truncation"),
        ("/v1/responses", {"input": "a", "truncation": "disabled"}, None),
        ("/api/chat", {**HELLO, "truncate": True, "shift": False, "stream": False}, "shift, truncate"),
        ("/api/generate", {"prompt": "a", "truncate": False, "stream": False}, "truncate"),
    ):
        async with server.post(path, {"model": "tiny", **fields}) as response:
            assert response.status == 200, await response.text()
            found = response.headers.get("X-Greenroom-Ignored")
            assert (found and ", ".join(sorted(found.split(", ")))) == listed, (path, fields)
    async with server.post("/api/generate", {"model": "tiny", "prompt": "a", "suffix": "b"}) as response:
        assert response.status == 400
        assert "suffix is not supported" in (await response.json())["error"]
