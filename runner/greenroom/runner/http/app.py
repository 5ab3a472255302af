"""The front door: what happens to every request, and the application that a host mounts under any prefix."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from greenroom.actors.limits import escaped
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.aiohttp_adapter import Application, holder, mount
from greenroom.runner.http.context import Context, Stop
from greenroom.runner.http.errors import HttpRefusal, answer, family_of, refusal_of
from greenroom.runner.http.guard import Guard
from greenroom.runner.http.idempotency import Idempotency
from greenroom.runner.http.port import AnyResponse, Request
from greenroom.runner.http.routes import all_routes, check_query

_access = logging.getLogger("greenroom.access")

_METHOD = 20
_PATH = 300
"""Characters of each that are logged."""
_POLLED = frozenset({"/livez", "/readyz", "/jobs"})
"""Clients that wait ask these several times a second; at level INFO they would fill the log."""


def front_door(
    greenroom: Greenroom,
    *,
    allowed_hosts: Collection[str] = (),
    allowed_origins: Collection[str] = (),
    stop: Stop | None = None,
) -> Application:
    """An aiohttp application that serves a started `Greenroom`.

    Args:
        greenroom: the runner; the caller stops it, after the application.
        allowed_hosts: values of `Host`, without port, that are accepted beside the loopback names; `*` is
            any. Without the check, a page elsewhere could have its own name resolve to this machine.
        allowed_origins: origins of web pages that may call, beside pages served from this machine; `*` is
            any.
        stop: called by `POST /daemon/stop`.
    """
    context = Context(greenroom, stop)
    door = _FrontDoor(context, Guard(allowed_hosts, allowed_origins))
    return mount(
        all_routes(context),
        door.serve,
        held=context,
        closing=context.clients.dismiss,
        close=context.close,
    )


def context_of(app: Application) -> Context:
    """The context of an application that `front_door` has made."""
    context: Context = holder(app)
    return context


class _FrontDoor:
    def __init__(self, context: Context, guard: Guard) -> None:
        self._ids = context.ids
        self._guard = guard
        self._idempotency = Idempotency(context)

    async def serve(self, request: Request) -> AnyResponse:
        """Answer a request, and log who asked for what and how it ended: never what was said."""
        request.id = self._ids.next()
        began = time.perf_counter()
        status = 500
        try:
            response = self._guard.check(request) or await self._answer(request)
            status = response.status
            return response
        finally:
            level = logging.DEBUG if request.path in _POLLED else logging.INFO
            if _access.isEnabledFor(level):
                _access.log(
                    level,
                    "%s %s %d %.1f ms %s",
                    escaped(request.method, _METHOD),
                    escaped(request.path, _PATH),
                    status,
                    (time.perf_counter() - began) * 1000,
                    request.id,
                )

    async def _answer(self, request: Request) -> AnyResponse:
        try:
            check_query(request)
            return await self._idempotency.once(request, _handle)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - `refusal_of` logs what is unexpected
            return _refused(request, error)


async def _handle(request: Request) -> AnyResponse:
    """Call the route's handler; a failure becomes a sentence in the family's form, never a traceback."""
    route = request.route
    try:
        return await route.handler(request) if route is not None else _refused(request, _no_route(request))
    except ConnectionError:
        raise
    except Exception as error:  # noqa: BLE001 - `refusal_of` logs what is unexpected
        return _refused(request, error)


def _refused(request: Request, error: Exception) -> AnyResponse:
    refusal = refusal_of(error)
    if request.keyed is not None:
        request.keyed.refusal = refusal
    return answer(request, refusal, family_of(request), getattr(error, "param", None))


def _no_route(request: Request) -> HttpRefusal:
    if request.allowed:
        method, allowed = escaped(request.method, _METHOD), ", ".join(request.allowed)
        return HttpRefusal(405, "wrong_method", f"{method} is not supported here, only {allowed}.")
    return HttpRefusal(404, "no_such_path", f"There is nothing at {escaped(request.path)}.")
