"""One daemon for all histories of a module."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from histories import Told
from wedge import BOUND

MakeTold = Callable[..., Awaitable[Told]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=BOUND * 4)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as made:
        yield made


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Sockets lie in it, and their paths are bounded."""
    made = Path(tempfile.mkdtemp(prefix="gr-h-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def make_told(folder: Path, session: aiohttp.ClientSession) -> AsyncIterator[MakeTold]:
    """`await make_told("--tokens", "3", max_wait="10")`: flags of every engine, settings."""
    made: list[Told] = []

    async def make(*flags: str, toy: bool = False, start: bool = True, **settings: str) -> Told:
        env = {f"GREENROOM_{name.upper()}": value for name, value in settings.items()}
        place = folder / f"d{len(made)}"
        place.mkdir()
        daemon = Told(place / "h", session, flags, env, toy)
        made.append(daemon)
        if start:
            await daemon.start()
        return daemon

    yield make
    for daemon in made:
        await daemon.clean_up()
