"""A Starlette service that has Greenroom inside: its own route, and the front door under /ai.

    python examples/asgi_service.py 8080
    curl localhost:8080/ai/v1/chat/completions -d '{"model": "smollm2", "messages": [...]}'

With FastAPI the two lines that matter are `FastAPI(lifespan=door.lifespan)` and `app.mount("/ai", door)`.
"""

from __future__ import annotations

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from greenroom.runner import Greenroom, asgi, load


def make_app(greenroom: Greenroom) -> Starlette:
    async def models(_: Request) -> JSONResponse:
        """A route of the service's own, asking the runner without HTTP."""
        return JSONResponse({model.id: model.tags for model in greenroom.models()})

    door = asgi(greenroom)
    routes = [Route("/my-models", models), Mount("/ai", door)]
    return Starlette(routes=routes, lifespan=door.lifespan)


if __name__ == "__main__":
    # Requests that have no end, such as those that follow the log, are ended after five seconds.
    uvicorn.run(
        make_app(Greenroom(load())),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        timeout_graceful_shutdown=5,
    )
