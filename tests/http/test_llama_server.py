"""llama-server's own routes, for the model that is named or meant."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from greenroom.actors.library.messages import Pull
from greenroom.runner.backends.base import Dialect
from greenroom.runner.testing import tiny_gguf

TOLD = json.dumps({"tokens": [1, 2]})


async def test_tokens_are_the_engines_and_a_model_need_not_be_named_if_it_is_clear(open_server: Any) -> None:
    server = await open_server("--answer", "200", TOLD)
    for body in ({"model": "tiny", "content": "x"}, {"content": ["x", 5]}, {"model": None, "content": ""}):
        for path in ("/tokenize", "/engines/tokenize", "/engines/fake/tokenize"):
            async with server.post(path, body) as response:
                assert (response.status, await response.json()) == (200, {"tokens": [1, 2]})
    async with server.post("/detokenize", {"tokens": []}) as response:
        assert response.status == 200
    async with server.post("/apply-template", {"messages": [{"role": "user", "content": "x"}]}) as response:
        assert response.status == 200
    async with server.post("/infill", {"input_prefix": "a", "input_suffix": "b", "n_predict": 5}) as response:
        assert response.status == 200
    await server.nothing_is_held()


async def test_a_prompt_shows_tools_that_the_template_has_no_place_for(open_server: Any) -> None:
    server = await open_server("--answer", "200", json.dumps({"prompt": "user: x"}))
    tool = {"type": "function", "function": {"name": "weather"}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "tools": [tool], "stream": True}
    async with server.post("/apply-template", body) as response:
        assert (response.status, await response.json()) == (200, {"prompt": "user: x"})
    await server.nothing_is_held()


async def test_what_is_wrong_is_said_before_anything_is_loaded(open_server: Any) -> None:
    server = await open_server()
    wrong: tuple[tuple[str, Any, int, str | None], ...] = (
        ("/tokenize", {}, 400, "content"),
        ("/tokenize", {"content": [None]}, 400, "content[0]"),
        ("/tokenize", [], 400, None),
        ("/tokenize", {"model": 5, "content": "x"}, 400, "model"),
        ("/tokenize", {"model": "absent", "content": "x"}, 404, "model"),
        ("/detokenize", {"tokens": ["x"]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/apply-template", {"messages": []}, 400, "messages"),
        ("/infill", {"input_prefix": "x"}, 400, "input_suffix"),
    )
    for path, body, status, param in wrong:
        async with server.post(path, body) as response:
            answer = await response.json()
        assert response.status == status, (path, body, answer)
        assert answer["error"]["param"] == param, (path, body, answer)
    assert server.greenroom.engines() == ()


async def test_a_backend_that_lacks_a_route_says_so_before_a_model_is_loaded(open_server: Any) -> None:
    server = await open_server(backend={"dialect": Dialect(lacks=frozenset({"/infill"}))})
    status, error = await server.error(server.post("/infill", {"input_prefix": "a", "input_suffix": "b"}))
    assert (status, error["code"]) == (404, "not_offered")
    assert error["message"].startswith("fake does not offer /infill.")
    assert server.greenroom.engines() == ()


async def test_properties_are_told_without_loading_and_name_no_path(open_server: Any) -> None:
    server = await open_server(slots=2)
    async with server.get("/props?model=tiny") as response:
        props = await response.json()
    assert (props["model_path"], props["total_slots"], props["modalities"]["vision"]) == ("tiny", 2, False)
    assert props["default_generation_settings"]["n_ctx"] > 0
    assert "chat_template" in props
    assert server.greenroom.engines() == ()
    async with server.chat() as response:
        assert response.status == 200
    async with server.get("/props") as response:
        named = "docker.io/ai/tiny:latest"
        assert await response.json() == {"total_slots": 3, "model_path": named, "model_alias": named}
    async with server.get("/props?model=absent") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")


async def test_health_is_the_daemons_or_a_models(open_server: Any, short_path: Any) -> None:
    server = await open_server("--load-forever")
    async with server.get("/health") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
    async with server.get("/health?model=tiny") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok", "loaded": False})
    async with server.post("/engines/_configure", {"model": "tiny", "keep_alive": "1h"}) as response:
        assert response.status == 202
    while True:
        async with server.get("/health?model=tiny") as response:
            if response.status == 503:
                assert (await response.json())["error"]["message"] == "Loading model"
                break


async def test_several_models_must_be_named(open_server: Any, short_path: Any) -> None:
    server = await open_server("--answer", "200", TOLD)
    other = await asyncio.to_thread(tiny_gguf, short_path / "other.gguf", name="another")
    await server.greenroom.system.ask(Pull(reference=f"file:{other}"))
    assert len(server.greenroom.models()) == 2
    status, error = await server.error(server.post("/tokenize", {"content": "x"}))
    assert (status, error["code"]) == (400, "model_required")
    async with server.post("/tokenize", {"model": "tiny", "content": "x"}) as response:
        assert response.status == 200
    # The only one that is loaded is meant.
    async with server.post("/tokenize", {"content": "x"}) as response:
        assert response.status == 200
    assert len(server.engines()) == 1
