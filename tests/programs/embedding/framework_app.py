"""The front door under /ai of an application made with FRAMEWORK, or alone; any ASGI server runs `app`."""

from __future__ import annotations

import os
from typing import Any

from greenroom.runner import Greenroom, asgi, load

FRAMEWORK = os.environ["FRAMEWORK"]
greenroom = Greenroom(load())
door = asgi(greenroom)
app: Any


def made_with_fastapi() -> Any:
    from fastapi import FastAPI

    made = FastAPI(lifespan=door.lifespan)

    @made.get("/own")
    async def own() -> dict[str, int]:
        return {"models": len(greenroom.models())}

    made.mount("/ai", door)
    return made


def made_with_starlette() -> Any:
    """With the middleware that wraps what is received and sent, as many programs have it."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.responses import JSONResponse
    from starlette.routing import Mount, Route

    async def own(_: Any) -> Any:
        return JSONResponse({"models": len(greenroom.models())})

    async def passed(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["X-Passed"] = "yes"
        return response

    return Starlette(
        routes=[Route("/own", own), Mount("/ai", door)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=passed)],
        lifespan=door.lifespan,
    )


def made_with_litestar() -> Any:
    import litestar

    @litestar.get("/own")
    async def own() -> dict[str, int]:
        return {"models": len(greenroom.models())}

    @litestar.asgi("/ai", is_mount=True)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await door(scope, receive, send)

    return litestar.Litestar(route_handlers=[own, mounted], lifespan=[door.lifespan])


def made_with_django() -> Any:
    """It has no lifespan and mounts nothing: the server's lifespan and all below /ai go to the front door."""
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import JsonResponse
    from django.urls import path

    def own(_: Any) -> Any:
        return JsonResponse({"models": len(greenroom.models())})

    settings.configure(ROOT_URLCONF=(path("own", own),), SECRET_KEY="of the test", ALLOWED_HOSTS=["*"])
    django.setup()
    made = get_asgi_application()

    async def both(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await door(scope, receive, send)
        elif scope["path"].startswith("/ai/"):
            await door({**scope, "root_path": "/ai"}, receive, send)
        else:
            await made(scope, receive, send)

    return both


app = globals()[f"made_with_{FRAMEWORK}"]() if FRAMEWORK != "alone" else door
