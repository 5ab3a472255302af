"""An application of several workers, which ask the daemon of the data directory in `WORKERS_HOME`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import greenroom


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with greenroom.connect(os.environ["WORKERS_HOME"]) as client:
        app.state.client = client
        yield


async def models(request: Request) -> JSONResponse:
    client: greenroom.AsyncClient = request.app.state.client
    found = [one.id for one in await client.models()]
    return JSONResponse({"pid": os.getpid(), "url": client.url, "models": found})


app = Starlette(routes=[Route("/models", models)], lifespan=lifespan)
