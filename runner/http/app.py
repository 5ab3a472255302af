"""The front door as an aiohttp application, to be served or mounted under any prefix."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware
from greenroom.runner.http import openai
from greenroom.runner.http.backends import Backends
from greenroom.runner.http.backstage import Backstage
from greenroom.runner.http.door import Door, Stop
from greenroom.runner.http.engines import Engines
from greenroom.runner.http.errors import Family, HttpRefusal, answer, answer_error, refusal_of
from greenroom.runner.http.following import FOLLOWING
from greenroom.runner.http.headers import ID, REQUEST_ID, request_id_of
from greenroom.runner.http.health import Health
from greenroom.runner.http.installs import Installs
from greenroom.runner.http.keyed import keyed
from greenroom.runner.http.models import Models
from greenroom.runner.http.transfers import Transfers
from greenroom.runner.http.upkeep import Upkeep
from greenroom.runner.http.why import Why

_access = logging.getLogger("greenroom.access")

DOOR: web.AppKey[Door] = web.AppKey("greenroom.door", Door)

_CORS: web.RequestKey[dict[str, str]] = web.RequestKey("greenroom.cors", dict)
_METHODS = "GET, POST, DELETE"
_POLLED = frozenset({"/livez", "/readyz", "/jobs"})
"""Asked several times a second by whoever waits for something; they would fill the log."""
_CHARS = 100
"""Characters of a client's own text that are repeated to it."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def front_door(
    backstage: Backstage,
    *,
    allowed_hosts: Collection[str] = (),
    allowed_origins: Collection[str] = (),
    stop: Stop | None = None,
) -> web.Application:
    """An application that serves a started `Greenroom`.

    Args:
        backstage: the runner. Whoever started it stops it, after the application.
        allowed_hosts: names in `Host` that are answered to beside the loopback ones, without port; `*` is
            any. A browser that was lured to a name which points here must not get in.
        allowed_origins: origins of web pages that may call, beside those served from this machine;
            `*` is any.
        stop: what `POST /daemon/stop` calls.
    """
    door = Door(backstage, stop)
    guard = _guard(frozenset(allowed_hosts), frozenset(allowed_origins))
    app = web.Application(middlewares=[_journal(door), guard, _plainly, keyed(door), _plainly])
    app[DOOR] = door
    app.add_routes([*openai.routes(door)])
    families = (Engines, Installs, Transfers, Upkeep, Models, Health, Why, Backends)
    for family in families:
        app.add_routes([*family(door).routes()])
    app.on_response_prepare.append(_add_headers)
    app.on_shutdown.append(_dismiss)
    app.on_cleanup.append(_close)
    return app


def _journal(door: Door) -> Middleware:
    """Gives each request its id, and logs who asked for what and how it ended. Never what was said."""

    @web.middleware
    async def journal(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = request[ID] = door.ids.next()
        began = time.perf_counter()
        status = 500
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            level = logging.DEBUG if request.path in _POLLED else logging.INFO
            if _access.isEnabledFor(level):
                took = (time.perf_counter() - began) * 1000
                _access.log(
                    level, "%s %s %d %.1f ms %s", request.method, request.path, status, took, request_id
                )

    return journal


def _guard(hosts: frozenset[str], origins: frozenset[str]) -> Middleware:
    """Lets in who calls us by a name of ours, and no web page from elsewhere."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host")
        if host is not None and "*" not in hosts:
            name = _name_of(f"//{host}")
            if not _is_loopback(name) and name not in hosts:
                refusal = HttpRefusal(
                    403,
                    "host_not_allowed",
                    f"Host not allowed: {host[:_CHARS]!r}.",
                    advice="Call Greenroom by localhost or 127.0.0.1.",
                )
                return answer_error(request, refusal, _family(request))
        origin = request.headers.get("Origin")
        if origin is None:
            return await handler(request)
        if not ("*" in origins or origin in origins or _is_loopback(_name_of(origin))):
            refusal = HttpRefusal(403, "origin_not_allowed", f"Origin not allowed: {origin[:_CHARS]!r}.")
            return answer_error(request, refusal, _family(request))
        request[_CORS] = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if request.method == "OPTIONS":
            asked = request.headers.get("Access-Control-Request-Headers", "*")
            preflight = {
                "Access-Control-Allow-Credentials": "true",
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": asked,
                "Access-Control-Max-Age": "600",
            }
            return web.Response(status=204, headers=preflight)
        return await handler(request)

    return guard


@web.middleware
async def _plainly(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure becomes a sentence in the family's form; none becomes a traceback."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        error: Exception = HttpRefusal(404, "no_such_path", f"There is nothing at {request.path[:_CHARS]}.")
    except web.HTTPMethodNotAllowed as wrong:
        allowed = ", ".join(sorted(wrong.allowed_methods))
        error = HttpRefusal(
            405, "wrong_method", f"{request.method[:_CHARS]} is not offered here, only {allowed}."
        )
    except (web.HTTPException, ConnectionError):
        raise
    except Exception as unforeseen:  # noqa: BLE001 - told by `refusal_of`, which logs what nobody foresaw
        error = unforeseen
    refusal = refusal_of(error)
    if (following := request.get(FOLLOWING)) is not None:
        following.refusal = refusal
    return answer(request, refusal, _family(request), getattr(error, "param", None))


def _family(request: web.Request) -> Family:
    """Inference speaks its family's error object wherever it is mounted; the verbs speak text."""
    path = request.path
    if path.endswith(("/v1/messages", "/v1/messages/count_tokens")):
        return "anthropic"
    inference = "/v1/" in path or path.endswith(("/rerank", "/score"))
    return "openai" if inference and "/models/" not in path.partition("/v1/")[0] else "text"


@lru_cache(maxsize=256)
def _name_of(url: str) -> str:
    """The host of a URL, without brackets and port; empty when it has none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


@lru_cache(maxsize=256)
def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[REQUEST_ID] = request_id_of(request)
    cors = request.get(_CORS)
    if cors is not None:
        response.headers.update(cors)


async def _dismiss(app: web.Application) -> None:
    app[DOOR].visitors.dismiss()


async def _close(app: web.Application) -> None:
    await app[DOOR].close()
