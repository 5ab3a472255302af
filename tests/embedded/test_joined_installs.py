"""Fifty who ask for one absent backend, without HTTP, have it installed once."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from greenroom.actors import Abandon, Ensure, Pull, Serve
from greenroom.actors.journal.reader import read_journal
from greenroom.runner import Greenroom, Settings, tiny_gguf
from toy import make_wheel, sources, toy_backend

ASKERS = 50


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short path with the wheel of a backend, which is where packages come from."""
    folder = Path(tempfile.mkdtemp(prefix="gr-"))
    make_wheel(folder / "wheels")
    for name, value in sources(folder / "wheels").items():
        monkeypatch.setenv(name, value)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def greenroom(place: Path) -> Greenroom:
    return Greenroom(Settings(home=place / "home"), backends={"toy": toy_backend(place)})


def types(place: Path) -> list[str]:
    return [record.type for record in read_journal(place / "home" / "journal.db")]


def test_fifty_threads_that_ask_for_one_absent_backend_make_one_installation(
    greenroom: Greenroom, place: Path
) -> None:
    with greenroom, ThreadPoolExecutor(ASKERS) as pool:
        replies = [
            pool.submit(lambda: greenroom.system.ask(Ensure(backend="toy")).get(timeout=60))
            for _ in range(ASKERS)
        ]
        assert len({reply.result().installation for reply in replies}) == 1
    assert types(place).count("install_requested") == 1
    assert types(place).count("installation_committed") == 1


async def test_fifty_tasks_that_ask_for_one_absent_backend_make_one_installation(
    greenroom: Greenroom, place: Path
) -> None:
    with blockbuster_ctx("greenroom"):
        async with greenroom:
            asks = [greenroom.system.ask(Ensure(backend="toy")) for _ in range(ASKERS)]
            ensured = await asyncio.gather(*asks)
            assert len({one.installation for one in ensured}) == 1
    assert (await asyncio.to_thread(types, place)).count("installation_committed") == 1


async def test_fifty_requests_for_a_model_of_an_absent_backend_install_once_and_load_once(
    greenroom: Greenroom, place: Path
) -> None:
    model = await asyncio.to_thread(tiny_gguf, place / "tiny.gguf")
    async with greenroom:
        system = greenroom.system
        pulled = await system.ask(Pull(reference=f"file:{model}"))
        serves = [
            Serve(request_id=f"r{n}", model_id=pulled.model.id, model_ref="tiny", policy="auto")
            for n in range(ASKERS)
        ]
        granted = await asyncio.gather(*(system.ask(serve) for serve in serves))
        assert len({one.engine_id for one in granted}) == 1
        (reading,) = greenroom.gates.readings().values()
        assert reading.inside == ASKERS
        for serve in serves:
            system.tell(Abandon(request_id=serve.request_id))
    stored = await asyncio.to_thread(types, place)
    assert stored.count("installation_committed") == 1
    assert stored.count("engine_start_requested") == 1
