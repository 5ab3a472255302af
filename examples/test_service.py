"""Tests for a service with Greenroom inside. The fixtures come with Greenroom and need no model.

It finds `service.py` when it is run in its folder: `cd examples && python -m pytest test_service.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from service import make_app

from greenroom import Client, GreenroomError
from greenroom.runner import FakeEngine


def test_an_answer_is_what_the_fake_engine_says(greenroom: Client, fake_engine: FakeEngine) -> None:
    fake_engine.says("Blue.")
    assert greenroom.chat("tiny", "Name a colour.").text == "Blue."
    assert fake_engine.requests[-1]["messages"][-1]["content"] == "Name a colour."


def test_an_engine_that_fails_is_an_error(greenroom: Client, fake_engine: FakeEngine) -> None:
    fake_engine.fails()
    with pytest.raises(GreenroomError, match="failed on this request"):
        greenroom.chat("tiny", "Name a colour.")


def test_a_service_passes_an_answer_on(greenroom: Client, fake_engine: FakeEngine) -> None:
    fake_engine.says("Green.")
    assert greenroom.runner is not None
    app = make_app(greenroom.runner)
    assert asyncio.run(answer_of(app))["choices"][0]["message"]["content"] == "Green."


async def answer_of(app: web.Application) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Another?"}]}
    async with TestClient(TestServer(app)) as client:
        assert len(await (await client.get("/my-models")).json()) == 1
        return await (await client.post("/ai/v1/chat/completions", json=body)).json()
