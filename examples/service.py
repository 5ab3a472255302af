"""An aiohttp service that has Greenroom inside: its own route, and the front door under /ai.

    python examples/service.py 8080
    curl localhost:8080/ai/v1/chat/completions -d '{"model": "smollm2", "messages": [...]}'

The service starts at once; backends are installed and models loaded when they are needed.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

from aiohttp import web

from greenroom.runner import Greenroom, front_door, load

GREENROOM = web.AppKey("greenroom", Greenroom)


async def greenroom_runs(app: web.Application) -> AsyncIterator[None]:
    async with app[GREENROOM].client():  # starts it if it is not running, and then also stops it
        yield


async def models(request: web.Request) -> web.Response:
    """A route of the service's own, asking the runner without HTTP."""
    return web.json_response({model.id: model.tags for model in request.app[GREENROOM].models()})


def make_app(greenroom: Greenroom) -> web.Application:
    app = web.Application()
    app[GREENROOM] = greenroom
    app.cleanup_ctx.append(greenroom_runs)
    app.router.add_get("/my-models", models)
    app.add_subapp("/ai", front_door(greenroom))
    return app


if __name__ == "__main__":
    # The settings are the daemon's: GREENROOM_HOME, GREENROOM_INSTALL_POLICY, config.toml, …
    web.run_app(make_app(Greenroom(load())), host="127.0.0.1", port=int(sys.argv[1]))
