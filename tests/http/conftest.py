"""A real Greenroom with engines that misbehave on demand, behind a front door of its own or mounted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from blockbuster import blockbuster_ctx

from greenroom.actors.gates import GateReading
from greenroom.actors.library.messages import Pull
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.actors.values import Engine, Model
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.aiohttp_adapter import ServerRunner
from greenroom.runner.http.app import asgi, context_of, front_door
from greenroom.runner.http.asgi_adapter import AsgiApplication
from greenroom.runner.http.context import Context
from greenroom.runner.remote_settings import RemoteBackend
from greenroom.runner.setting_values import ExternalBackend
from greenroom.runner.testing import fake_backend, tiny_gguf
from waiting import until_async


@pytest.fixture
def make_gguf() -> Callable[[Path], Path]:
    """Writes a whole GGUF file with one tensor of four numbers."""
    return tiny_gguf


class ServedGreenroom:
    """A front door that is open, what lies behind it, and a client before it."""

    def __init__(
        self, greenroom: Greenroom, app: web.Application | AsgiApplication, base: str, root: str
    ) -> None:
        self.greenroom = greenroom
        self._app = app
        self.base = base
        """The front door's own root, with the prefix it is mounted under."""
        self.root = root
        self.session = aiohttp.ClientSession()

    @property
    def app(self) -> web.Application:
        assert isinstance(self._app, web.Application)
        return self._app

    @property
    def context(self) -> Context:
        return context_of(self._app) if isinstance(self._app, web.Application) else self._app.held

    # asking

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        return self.session.post(self.base + path, json=body, **more)

    def get(self, path: str, **more: Any) -> Any:
        return self.session.get(self.base + path, **more)

    def chat(self, **fields: Any) -> Any:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}
        return self.post("/v1/chat/completions", body)

    async def error(self, asked: Any) -> tuple[int, dict[str, Any]]:
        """Status and error object of a request that is refused."""
        async with asked as response:
            return response.status, (await response.json())["error"]

    async def stream(self, **fields: Any) -> tuple[int, list[str]]:
        """Status and all lines of a streamed chat."""
        async with self.chat(stream=True, **fields) as response:
            return response.status, (await response.text()).splitlines()

    # looking

    def engines(self, *states: str) -> list[Engine]:
        return [one for one in self.greenroom.engines() if one.state in (states or ("starting", "ready"))]

    def inside(self) -> int:
        readings: dict[str, GateReading] = self.greenroom.gates.readings()
        return sum(one.inside for one in readings.values())

    def waiting(self) -> int:
        return len(self.greenroom.system.volatile(SCHEDULER).queue)

    async def stats(self) -> dict[str, Any]:
        """What the one ready engine has counted."""
        (engine,) = self.engines("ready")
        connector = aiohttp.UnixConnector(engine.endpoint)
        async with aiohttp.ClientSession(connector=connector) as session, session.get("http://e/stats") as r:
            return dict(await r.json())

    async def nothing_is_held(self) -> None:
        """Wait until no request is inside a gate or queued, and no engine generates."""
        await until_async(
            lambda: self.inside() == 0 and self.waiting() == 0 and not len(self.context.clients)
        )
        for _ in range(200):
            # An engine that died a moment ago does not generate either.
            with contextlib.suppress(aiohttp.ClientError):
                if self.engines("ready") and (await self.stats())["active"]:
                    await asyncio.sleep(0.01)
                    continue
            break
        else:
            raise AssertionError("an engine still generates")
        assert not [job for job in self.greenroom.board.running() if job.startswith("request/")]


OpenGreenroom = Callable[..., Awaitable[ServedGreenroom]]


@pytest.fixture
def prefix() -> str:
    """Where the front door is mounted in a host's application; empty means it stands alone."""
    return ""


@pytest.fixture
def adapter() -> str:
    """What is behind the front door: `aiohttp` or `asgi`, of which uvicorn is the server."""
    return os.environ.get("GREENROOM_TEST_ADAPTER", "aiohttp")


@pytest.fixture
async def open_server(
    prefix: str, adapter: str, short_path: Path, programs: Path
) -> AsyncIterator[OpenGreenroom]:
    """Makes one: `await open_server("--tokens", "3", max_wait=10.0)`; flags are the fake engine's."""
    stack = contextlib.AsyncExitStack()
    number = 0

    async def make(
        *flags: str,
        door: dict[str, Any] | None = None,
        backend: dict[str, Any] | None = None,
        host: dict[str, Any] | None = None,
        remotes: dict[str, RemoteBackend] | None = None,
        **settings: Any,
    ) -> ServedGreenroom:
        nonlocal number
        number += 1
        home = short_path / f"h{number}"
        fake = fake_backend(programs / "fake_engine.py", *flags, **(backend or {}))
        absent = fake_backend(programs / "fake_engine.py", name="absent", deferred=True, preference=9)
        binary = {"fake": ExternalBackend(binary=Path(sys.executable))}
        configured = Settings(home=home, backends={**binary, **(remotes or {})}, **settings)
        backends = {"fake": fake, "absent": absent}
        greenroom = await asyncio.to_thread(Greenroom, configured, backends=backends)
        stack.push_async_callback(asyncio.to_thread, greenroom.stop)
        await asyncio.to_thread(greenroom.start)
        file = await asyncio.to_thread(tiny_gguf, short_path / f"tiny{number}.gguf")
        pulled = await greenroom.system.ask(Pull(reference=f"file:{file}", force=True))
        model: Model = pulled.model
        await _tag(greenroom, model)
        app: web.Application | AsgiApplication
        if adapter == "asgi":
            from under_uvicorn import under_uvicorn

            app = asgi(greenroom, **(door or {}))
            address = await stack.enter_async_context(under_uvicorn(app, prefix))
            server = ServedGreenroom(greenroom, app, f"http://{address}{prefix}", address)
            async with server.get("/livez"):
                """Now there is a context."""
            return await _installed(server, stack)
        app = served = front_door(greenroom, **(door or {}))
        if prefix:
            served = web.Application()
            served.add_subapp(prefix, app)
        # A host has its own; the daemon has this one.
        kind = web.AppRunner if prefix else ServerRunner
        runner = kind(served, access_log=None, shutdown_timeout=0.3, **(host or {}))
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address = "{}:{}".format(*runner.addresses[0])
        return await _installed(ServedGreenroom(greenroom, app, f"http://{address}{prefix}", address), stack)

    yield make
    # The Greenroom's stop waits for processes; the loop must go on meanwhile, as in the daemon.
    await asyncio.shield(stack.aclose())


async def _installed(server: ServedGreenroom, stack: contextlib.AsyncExitStack) -> ServedGreenroom:
    stack.push_async_callback(server.session.close)
    await until_async(lambda: any(s.state == "installed" for s in server.greenroom.statuses()))
    return server


async def _tag(greenroom: Greenroom, model: Model) -> None:
    from greenroom.actors.library.messages import TagModel

    await greenroom.system.ask(TagModel(model_id=model.id, tag="docker.io/ai/tiny:latest"))


@pytest.fixture(autouse=True)
def nothing_blocks() -> Iterator[None]:
    """Whatever of ours blocks the loop raises."""
    # Of "greenroom" itself, which is no folder when it is installed for editing, nothing would be found.
    with blockbuster_ctx(["greenroom.actors", "greenroom.runner"]):
        yield


def _frames(lines: list[str]) -> list[Any]:
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


@pytest.fixture
def frames() -> Callable[[list[str]], list[Any]]:
    """Makes of a stream's lines the data of its events, decoded; `[DONE]` as it is."""
    return _frames
