"""A client gives official clients, an ASGI application and a unix socket of the Greenroom that it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_greenroom import fake_greenroom
from greenroom.runner import Client, NotAvailable, async_ollama, connect, ollama, openai

HELLO: Any = [{"role": "user", "content": "hi"}]
OpenClient = Callable[..., Client]


async def test_official_clients_ask_the_same_greenroom(open_client: OpenClient, tiny: str) -> None:
    client = await asyncio.to_thread(open_client, "--tokens", "2")

    def sync() -> set[str | None]:
        chat: Any = client.openai().chat.completions.create(model=tiny, messages=HELLO)
        message: Any = client.anthropic().messages.create(model=tiny, max_tokens=9, messages=HELLO)
        native = client.ollama().chat(model=tiny, messages=HELLO)
        return {chat.choices[0].message.content, message.content[0].text, native.message.content}

    said = await asyncio.to_thread(sync)
    assert len(said) == 1
    asking = client.in_asyncio()
    chat: Any = await (await asking.openai()).chat.completions.create(model=tiny, messages=HELLO)
    message: Any = await (await asking.anthropic()).messages.create(model=tiny, max_tokens=9, messages=HELLO)
    native = await (await asking.ollama()).chat(model=tiny, messages=HELLO)
    assert said == {chat.choices[0].message.content, message.content[0].text, native.message.content}


async def test_they_ask_a_greenroom_elsewhere_by_its_address(
    open_client: OpenClient, tiny: str, home: Path
) -> None:
    client = await asyncio.to_thread(open_client)
    path = home / "door.sock"
    with await asyncio.to_thread(lambda: client.serve(uds=path)):
        models = await asyncio.to_thread(lambda: openai(f"unix:{path}").models.list().data)
        assert models
        assert (await asyncio.to_thread(lambda: ollama(f"unix:{path}").list())).models
        assert (await async_ollama(f"unix:{path}").list()).models
        await asyncio.to_thread(client.close)
    assert not path.exists()


async def test_its_asgi_application_opens_and_closes_it(home: Path) -> None:
    greenroom = await asyncio.to_thread(fake_greenroom, home)
    door = greenroom.client().asgi()
    async with door.lifespan():
        assert greenroom.is_running
    assert not greenroom.is_running


def test_a_daemon_is_neither_mounted_nor_served_by_its_clients(home: Path) -> None:
    address = f"unix:{home / 'door.sock'}"
    with connect(address) as client:
        with pytest.raises(NotAvailable, match="this one is a daemon"):
            client.asgi()
        with pytest.raises(NotAvailable, match="this one is a daemon"):
            client.serve(uds=home / "door.sock")
        assert client.url == address
