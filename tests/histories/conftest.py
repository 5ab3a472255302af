"""One daemon for all histories of a module, and what `why` says of them."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from wedge import BOUND, Answer, Daemon

MakeTold = Callable[..., Awaitable["Told"]]

_PATTERNS = {
    "at": r"\d\d:\d\d:\d\d \((?:just now|[^()]+ ago|in [^()]+)\)",
    "clock": r"\d\d:\d\d:\d\d",
    "took": r"[\d.]+ ?(?:ms|s|m|h)(?: \d+s)?",
    "me": r"[^()]+ \(process \d+\)",
    "engine": r"[0-9a-f]+-\d+",
    "size": r"[\d.]+ [kMG]?B",
    "number": r"\d+",
    "job": r"[\w.-]+",
}


class Told(Daemon):
    """A daemon that tells the answer to `why NAME`."""

    async def why(self, name: str) -> Any:
        answer = await self.get(f"/why/{name}")
        assert answer.status == 200, answer.body
        return answer.json

    async def first_line(self, name: str) -> str:
        line: str = (await self.why(name))["answer"]
        return line


def request_of(answer: Answer) -> str:
    """The id of the request that this answers."""
    return str(answer.headers["X-Request-Id"])


def reads(line: str, template: str) -> None:
    """Assert that a line is this text; `{at}`, `{took}` and others stand for what differs each time."""
    pattern = re.escape(template)
    for name, one in _PATTERNS.items():
        pattern = pattern.replace(rf"\{{{name}\}}", one)
    assert re.fullmatch(pattern, line), f"\n  it says  {line}\n  and not  {template}"


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
