"""A Greenroom with the fake engine, and a client of it, inside the test's own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fake_greenroom import fake_greenroom
from greenroom.runner import Client, tiny_gguf

OpenClient = Callable[..., Client]


@pytest.fixture
def home(short_path: Path) -> Path:
    return short_path


@pytest.fixture
def open_client(home: Path) -> Iterator[OpenClient]:
    """Makes an open one that has a model called `tiny`; flags are the fake engine's."""
    clients: list[Client] = []

    def make(*flags: str) -> Client:
        client = fake_greenroom(home, *flags).client().__enter__()
        clients.append(client)
        client.pull(str(tiny_gguf(home / "tiny.gguf")))
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def tiny(home: Path) -> str:
    """The model's name."""
    return f"file:{home / 'tiny.gguf'}"
