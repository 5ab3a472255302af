"""An ASGI application under uvicorn, in the loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """None: they are the test's."""
        yield


@contextlib.asynccontextmanager
async def under_uvicorn(app: Any, prefix: str = "") -> AsyncIterator[str]:
    """Serve it, mounted in a Starlette application if there is a prefix, and give `host:port`."""
    served = Starlette(routes=[Mount(prefix, app=app)], lifespan=app.lifespan) if prefix else app
    config = uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=1, lifespan="on")
    server = _Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            if serving.done():
                await serving
                raise AssertionError("uvicorn has not started")
            await asyncio.sleep(0.005)
        try:
            yield "{}:{}".format(*listener.getsockname())
        finally:
            server.should_exit = True
            await serving
