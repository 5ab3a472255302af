"""The front door as an aiohttp application, to be served or mounted under any prefix."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection

from aiohttp import web
from aiohttp.typedefs import Middleware

from greenroom.actors.limits import escaped
from greenroom.runner.http import openai
from greenroom.runner.http.backends import Backends
from greenroom.runner.http.backstage import Backstage
from greenroom.runner.http.bounds import bounded, ignored
from greenroom.runner.http.door import Door, Stop
from greenroom.runner.http.engines import Engines
from greenroom.runner.http.errors import HttpRefusal, answer, family_of, refusal_of
from greenroom.runner.http.following import FOLLOWING
from greenroom.runner.http.guard import CORS, guard
from greenroom.runner.http.headers import ID, IGNORED_HEADER, REQUEST_ID, request_id_of
from greenroom.runner.http.health import Health
from greenroom.runner.http.installs import Installs
from greenroom.runner.http.keyed import keyed
from greenroom.runner.http.models import Models
from greenroom.runner.http.queries import Queries
from greenroom.runner.http.transfers import Transfers
from greenroom.runner.http.upkeep import Upkeep
from greenroom.runner.http.why import Why

_access = logging.getLogger("greenroom.access")

DOOR: web.AppKey[Door] = web.AppKey("greenroom.door", Door)

_QUERIES: web.AppKey[Queries] = web.AppKey("greenroom.queries", Queries)
_METHOD = 20
_PATH = 300
"""Characters of each that are logged."""
_POLLED = frozenset({"/livez", "/readyz", "/jobs"})
"""Asked several times a second by whoever waits for something; they would fill the log."""

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
    lets_in = guard(allowed_hosts, allowed_origins)
    app = web.Application(
        middlewares=[_journal(door), bounded(), lets_in, _plainly, _queried, keyed(door), _plainly]
    )
    app[DOOR] = door
    app.add_routes([*openai.routes(door)])
    families = (Engines, Installs, Transfers, Upkeep, Models, Health, Why, Backends)
    for family in families:
        app.add_routes([*family(door).routes()])
    app[_QUERIES] = Queries(app)
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
                    level,
                    "%s %s %d %.1f ms %s",
                    escaped(request.method, _METHOD),
                    escaped(request.path, _PATH),
                    status,
                    took,
                    request_id,
                )

    return journal


@web.middleware
async def _queried(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What follows the `?` is known, or is told back as ignored."""
    # The application's own: that of a host, in which this one is mounted, has another.
    for app in reversed(request.match_info.apps):
        if (queries := app.get(_QUERIES)) is not None:
            queries.check(request)
            break
    return await handler(request)


@web.middleware
async def _plainly(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure becomes a sentence in the family's form; none becomes a traceback."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        error: Exception = HttpRefusal(404, "no_such_path", f"There is nothing at {escaped(request.path)}.")
    except web.HTTPMethodNotAllowed as wrong:
        allowed = ", ".join(sorted(wrong.allowed_methods))
        error = HttpRefusal(
            405, "wrong_method", f"{escaped(request.method, _METHOD)} is not supported here, only {allowed}."
        )
    except (web.HTTPException, ConnectionError):
        raise
    except Exception as unforeseen:  # noqa: BLE001 - told by `refusal_of`, which logs what nobody foresaw
        error = unforeseen
    refusal = refusal_of(error)
    if (following := request.get(FOLLOWING)) is not None:
        following.refusal = refusal
    return answer(request, refusal, family_of(request), getattr(error, "param", None))


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[REQUEST_ID] = request_id_of(request)
    if what := ignored(request):
        response.headers[IGNORED_HEADER] = what
    cors = request.get(CORS)
    if cors is not None:
        response.headers.update(cors)


async def _dismiss(app: web.Application) -> None:
    app[DOOR].visitors.dismiss()


async def _close(app: web.Application) -> None:
    await app[DOOR].close()
