"""Daemons on fresh data directories, which end with the test together with all they have started."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from wedge import BOUND, Daemon

MakeDaemon = Callable[..., Awaitable[Daemon]]


@pytest.fixture
def place() -> Iterator[Path]:
    """Sockets lie in it, and their paths are bounded."""
    folder = Path(tempfile.mkdtemp(prefix="gr-w-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def make_daemon(place: Path) -> AsyncIterator[MakeDaemon]:
    """`await make_daemon("--tokens", "3", max_wait="10")`: flags of every engine, settings."""
    made: list[Daemon] = []
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=BOUND * 4)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def make(*flags: str, toy: bool = False, start: bool = True, **settings: str) -> Daemon:
            env = {f"GREENROOM_{name.upper()}": value for name, value in settings.items()}
            folder = place / f"d{len(made)}"
            folder.mkdir()
            daemon = Daemon(folder / "h", session, flags, env, toy)
            made.append(daemon)
            return await daemon.start() if start else daemon

        yield make
        for daemon in made:
            await daemon.clean_up()
