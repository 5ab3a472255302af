"""Testing a service that has Greenroom inside: a fixture that gives a test a whole one, with a fake engine.

It finds `service.py` when it is run in its folder: `cd examples && python -m pytest test_service.py`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from service import make_app

from greenroom.actors import Pull
from greenroom.runner import ExternalBackend, Greenroom, Settings, fake_backend, tiny_gguf

ENGINE = Path(__file__).parent / "echo_engine.py"


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    with tempfile.TemporaryDirectory(prefix="gr-") as folder:  # engines' sockets want a short path
        # The fake backend counts as installed, since the settings name something of the user's own.
        settings = Settings(
            home=Path(folder), backends={"fake": ExternalBackend(binary=Path(sys.executable))}
        )
        greenroom = Greenroom(settings, backends={"fake": fake_backend(ENGINE)})
        async with TestClient(TestServer(make_app(greenroom))) as client:
            await greenroom.system.ask(Pull(reference=f"file:{tiny_gguf(Path(folder) / 'tiny.gguf')}"))
            yield client


async def test_the_service_lists_its_models(client: TestClient[Any, Any]) -> None:
    models = await (await client.get("/my-models")).json()
    assert len(models) == 1


async def test_a_chat_is_answered_by_the_fake_engine(client: TestClient[Any, Any]) -> None:
    (model,) = await (await client.get("/my-models")).json()
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    answer = await (await client.post("/ai/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["message"]["content"] == "hello"
