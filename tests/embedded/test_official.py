"""Official clients in the program itself: no port, and the same front door and gate as for all others."""

from __future__ import annotations

import asyncio
import builtins
import gc
import importlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_greenroom import fake_greenroom
from greenroom.actors.library.messages import Pull, TagModel
from greenroom.runner import (
    Greenroom,
    anthropic,
    async_anthropic,
    async_ollama,
    async_openai,
    async_transport,
    ollama,
    openai,
    transport,
)
from greenroom.runner.testing import tiny_gguf
from waiting import until, until_async

HELLO: Any = [{"role": "user", "content": "hi"}]


def tiny(home: Path, *flags: str) -> Greenroom:
    """Not started; `add_model` follows."""
    return fake_greenroom(home / "home", *flags)


def add_model(greenroom: Greenroom, home: Path) -> None:
    pulled = greenroom.system.ask(Pull(reference=f"file:{tiny_gguf(home / 'tiny.gguf')}")).get(timeout=30)
    tag = TagModel(model_id=pulled.model.id, tag="docker.io/ai/tiny:latest")
    greenroom.system.ask(tag).get(timeout=30)


@pytest.fixture(scope="module")
def shared() -> Iterator[Greenroom]:
    with tempfile.TemporaryDirectory(prefix="gr-") as home, tiny(Path(home), "--tokens", "5") as greenroom:
        add_model(greenroom, Path(home))
        yield greenroom


@pytest.fixture(scope="module")
def endless() -> Iterator[Greenroom]:
    """Its engine ends no answer by itself."""
    flags = ("--tokens", "1000000", "--token-delay", "0.005")
    with tempfile.TemporaryDirectory(prefix="gr-") as home, tiny(Path(home), *flags) as greenroom:
        add_model(greenroom, Path(home))
        yield greenroom


def inside(greenroom: Greenroom) -> int:
    return sum(one.inside for one in greenroom.gates.readings().values())


def test_openais_client_chats_streams_and_is_refused_in_our_words(shared: Greenroom) -> None:
    import openai as openai_package

    with openai(shared) as client:
        whole = client.chat.completions.create(model="tiny", messages=HELLO)
        assert whole.choices[0].message.content
        stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text == whole.choices[0].message.content
        assert [model.id for model in client.models.list()]
        with pytest.raises(openai_package.NotFoundError, match="nowhere"):
            client.chat.completions.create(model="nowhere", messages=HELLO)
    assert inside(shared) == 0


async def test_openais_client_for_asyncio_does_the_same(shared: Greenroom) -> None:
    async with async_openai(shared) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
        assert text
        many = (client.chat.completions.create(model="tiny", messages=HELLO) for _ in range(20))
        assert {one.choices[0].message.content for one in await asyncio.gather(*many)} == {text}


async def test_anthropics_and_ollamas_clients_do_too(shared: Greenroom) -> None:
    def sync() -> None:
        with anthropic(shared) as client:
            said = client.messages.create(model="tiny", max_tokens=9, messages=HELLO)
            assert said.content[0].type == "text"
        native = ollama(shared)
        pieces = [part.message.content for part in native.chat(model="tiny", messages=HELLO, stream=True)]
        assert len(pieces) > 1
        assert native.list().models

    await asyncio.to_thread(sync)
    async with (
        async_anthropic(shared) as client,
        client.messages.stream(model="tiny", max_tokens=9, messages=HELLO) as stream,
    ):
        assert await stream.get_final_text()
    chunks = await async_ollama(shared).chat(model="tiny", messages=HELLO, stream=True)
    assert [part async for part in chunks][-1].done


@pytest.mark.parametrize("way", ["closed", "forgotten"])
def test_a_stream_that_is_closed_or_forgotten_gives_its_slot_back(endless: Greenroom, way: str) -> None:
    client = openai(endless)
    stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    assert next(iter(stream)).choices
    assert inside(endless) == 1
    if way == "closed":
        stream.close()
    del stream
    gc.collect()
    until(lambda: inside(endless) == 0)


async def test_a_cancelled_task_gives_its_slot_back(endless: Greenroom) -> None:
    client = async_openai(endless)
    asking = asyncio.create_task(client.chat.completions.create(model="tiny", messages=HELLO))
    await until_async(lambda: inside(endless) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until_async(lambda: inside(endless) == 0)


def test_a_timeout_is_the_clients_own_and_ends_the_request(endless: Greenroom) -> None:
    import openai as openai_package

    client = openai(endless, timeout=0.5, max_retries=0)
    with pytest.raises(openai_package.APITimeoutError):
        client.chat.completions.create(model="tiny", messages=HELLO)
    until(lambda: inside(endless) == 0)


def test_a_stop_ends_streams_with_a_sentence_and_leaves_no_thread(home: Path) -> None:
    import openai as openai_package

    before = set(threading.enumerate())
    with tiny(home, "--tokens", "1000000", "--token-delay", "0.005") as greenroom:
        add_model(greenroom, home)
        client = openai(greenroom, max_retries=0)
        stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        next(iter(stream))
        stopping = threading.Thread(target=greenroom.stop)
        stopping.start()
        with pytest.raises(openai_package.APIError, match="shutting down"):
            list(stream)
        stopping.join(60)
        with pytest.raises(openai_package.InternalServerError, match="not running in this program"):
            client.models.list()
    until(lambda: not set(threading.enumerate()) - before, what="the end of all threads")


def test_a_client_that_reads_slowly_holds_the_engine_back_and_no_memory(endless: Greenroom) -> None:
    import httpx

    body = {"model": "tiny", "messages": HELLO, "stream": True}
    with (
        httpx.Client(transport=transport(endless), base_url="http://localhost") as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        pieces = response.iter_raw()
        next(pieces)
        time.sleep(0.1)
        assert len(next(pieces)) < 2**20
    until(lambda: inside(endless) == 0)


async def test_both_httpxs_stream_bodies_of_any_form(shared: Greenroom) -> None:
    import httpx
    import httpx2

    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}'

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    async def later() -> Any:
        for piece in pieces():
            yield piece

    for module in (httpx, httpx2):
        with module.Client(transport=transport(shared, module), base_url="http://localhost") as client:
            answer = await asyncio.to_thread(client.post, "/v1/chat/completions", content=pieces())
            assert answer.status_code == 200
            assert (await asyncio.to_thread(client.head, "/livez")).status_code == 200
        using = async_transport(shared, module)
        async with module.AsyncClient(transport=using, base_url="http://localhost") as asking:
            answer = await asking.post("/v1/chat/completions", content=later())
            assert answer.json()["choices"]
            large = await asking.post("/engines/unload", content=b" " * 2**22)
            assert large.status_code == 413


def test_a_package_that_is_missing_is_named(shared: Greenroom, monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name in ("openai", "anthropic", "ollama"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return known(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    for make in (openai, async_openai, anthropic, async_anthropic, ollama, async_ollama):
        name = make.__name__.removeprefix("async_")
        with pytest.raises(ModuleNotFoundError, match=f"pip install {name}"):
            make(shared)


def test_a_fork_is_told_that_the_greenroom_is_its_parents(shared: Greenroom) -> None:
    import openai as openai_package

    client = openai(shared, max_retries=0)
    assert client.models.list().data
    pid = os.fork()
    if pid == 0:
        try:
            client.models.list()
        except openai_package.APIConnectionError as error:
            os._exit(0 if "process" in str(error.__cause__) else 1)
        except builtins.BaseException:  # noqa: BLE001 - the child must end here
            os._exit(2)
        os._exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
