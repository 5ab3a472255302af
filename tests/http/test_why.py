from __future__ import annotations

import asyncio
from typing import Any


async def test_why_is_the_same_over_http_as_json(open_server: Any) -> None:
    server = await open_server()
    assert (await server.stream())[0] == 200

    async with server.get("/why/tiny") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        found = await response.json()

    assert (found["name"], found["kind"], found["state"], found["cause"]) == (
        "tiny",
        "model",
        "loaded",
        "asked_for",
    )
    assert found["numbers"]["memory"] > 0
    assert found["steps"][-1]["type"] == "engine_ready"
    assert found["remedies"][-1]["command"] == "greenroom unload tiny"


async def test_models_with_slashes_backends_and_engines_are_asked_for_alike(open_server: Any) -> None:
    server = await open_server()
    await server.stream()
    (engine,) = server.engines("ready")

    kinds = []
    for name in ("docker.io/ai/tiny:latest", "fake", "absent", engine.spec.engine_id):
        async with server.get(f"/why/{name}") as response:
            kinds.append((await response.json())["kind"])

    assert kinds == ["model", "backend", "backend", "engine"]


async def test_an_unknown_name_is_404_with_near_names(open_server: Any) -> None:
    server = await open_server()

    async with server.get("/why/tinny") as response:
        assert response.status == 404
        assert "Did you mean tiny?" in await response.text()


async def test_many_simultaneous_questions_are_all_answered(open_server: Any) -> None:
    server = await open_server()

    async def ask() -> int:
        async with server.get("/why/tiny") as response:
            return int(response.status)

    assert await asyncio.gather(*(ask() for _ in range(20))) == [200] * 20
