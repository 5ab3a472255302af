"""The front door: what happens to every request, and the application that a host mounts under any prefix."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from urllib.parse import urlsplit

from greenroom.actors.characters import NAME, is_line
from greenroom.actors.limits import escaped
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.aiohttp_adapter import Application, holder, mount
from greenroom.runner.http.asgi_adapter import AsgiApplication, Door
from greenroom.runner.http.bodies import invalid
from greenroom.runner.http.context import Context, Stop
from greenroom.runner.http.errors import HttpRefusal, answer, answer_error, family_of, refusal_of
from greenroom.runner.http.errors import family_of_path as uncached_family
from greenroom.runner.http.idempotency import KEY, IdempotentRequests
from greenroom.runner.http.matching import RouteTable
from greenroom.runner.http.port import REQUEST_ID, AnyResponse, Request, Response
from greenroom.runner.http.routes import all_routes
from greenroom.runner.models.references import shown
from greenroom.runner.record.row import LEFT

_access = logging.getLogger("greenroom.access")

_METHOD = 20
_PATH = 300
"""Characters of each that are logged."""
_QUERIES = 32
"""Parameters after the `?`."""
_METHODS = "GET, POST, DELETE"
_CHARS = 100
"""Characters of the client's own text that are repeated to it."""
_LONGEST = 300
"""Characters of a host or an origin; names end at 253."""
_ORIGIN = re.compile(r"https?://[^/?#@\s\\]+")
"""As browsers write it. A page of an extension or a file is no page of this machine, whatever its name."""
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]{0,1024}")
_POLLED = frozenset({"/livez", "/readyz", "/jobs"})
"""Clients that wait ask these several times a second; at level INFO they would fill the log."""


def front_door(
    greenroom: Greenroom,
    *,
    allowed_hosts: Collection[str] = (),
    allowed_origins: Collection[str] = (),
    stop: Stop | None = None,
) -> Application:
    """An aiohttp application that serves a `Greenroom`.

    Args:
        greenroom: the runner; the caller starts it before the first request, and stops it after the
            application.
        allowed_hosts: values of `Host`, without port, that are accepted beside the loopback names; `*` is
            any. Without the check, a page elsewhere could have its own name resolve to this machine.
        allowed_origins: origins of web pages that may call, beside pages served from this machine; `*` is
            any.
        stop: called by `POST /daemon/stop`.
    """
    context = Context(greenroom, stop)
    door = _FrontDoor(context, _Guard(allowed_hosts, allowed_origins))
    return mount(
        all_routes(context), door.serve, held=context, closing=context.clients.dismiss, close=context.close
    )


def asgi(
    greenroom: Greenroom,
    *,
    allowed_hosts: Collection[str] = (),
    allowed_origins: Collection[str] = (),
    stop: Stop | None = None,
    runs: Callable[[], AbstractAsyncContextManager[object]] | None = None,
) -> AsgiApplication:
    """An ASGI application that serves a `Greenroom`: alone under any server, or mounted under any prefix.

    Served alone, its lifespan starts the Greenroom and stops it at the end, unless it runs already: then its
    owner stops it. Frameworks do not pass the lifespan on to what is mounted: give them the application's
    own, such as `FastAPI(lifespan=door.lifespan)`, or start the Greenroom yourself. It serves one event loop
    at a time. Until the Greenroom runs, requests are answered 503.

    Args:
        greenroom: the runner.
        allowed_hosts: values of `Host`, without port, that are accepted beside the loopback names; `*` is
            any.
        allowed_origins: origins of web pages that may call, beside pages served from this machine; `*` is
            any.
        stop: called by `POST /daemon/stop`.
        runs: what the lifespan enters in place of the Greenroom, and leaves at its end.
    """
    guard = _Guard(allowed_hosts, allowed_origins)

    def open_door() -> Door:
        if not greenroom.is_running:
            raise not_running("Serve the application with its lifespan, or start the Greenroom first.")
        context = Context(greenroom, stop)
        door = Door(
            RouteTable(all_routes(context)),
            _FrontDoor(context, guard).serve,
            held=context,
            closing=context.clients.dismiss,
            empty=context.clients.empty,
            close=context.close,
            forget=greenroom.attachments.remove,
        )
        greenroom.attachments.add(door)
        return door

    def run_it() -> AbstractAsyncContextManager[object]:
        return contextlib.nullcontext() if greenroom.is_running else greenroom

    return AsgiApplication(open_door, runs or run_it)


def not_running(advice: str) -> HttpRefusal:
    """The refusal of every request while the Greenroom that a program has inside does not run."""
    return HttpRefusal(503, "not_running", "Greenroom is not running in this program.", advice=advice)


def context_of(app: Application) -> Context:
    """The context of an application that `front_door` has made."""
    context: Context = holder(app)
    return context


class _FrontDoor:
    def __init__(self, context: Context, guard: _Guard) -> None:
        self._context = context
        self._ids = context.ids
        self._record = context.record
        self._guard = guard
        self._idempotency = IdempotentRequests(context)

    async def serve(self, request: Request) -> AnyResponse:
        """Answer a request, and log who asked for what and how it ended: never what was said."""
        note = request.note
        request.id = note.id = request.answer_headers[REQUEST_ID] = self._ids.next()
        note.method, note.path = request.method, request.path
        note.address, note.agent = request.remote, request.headers.get("User-Agent", "")
        self._record.begin(note)
        response: AnyResponse | None = None
        status = 500
        try:
            response = self._guard.check(request) or await self._answer(request)
            status = response.status
            return response
        finally:
            ended = time.perf_counter()
            self._finish(request, response, ended)
            level = logging.DEBUG if request.path in _POLLED else logging.INFO
            if _access.isEnabledFor(level):
                _access.log(
                    level,
                    "%s %s %d %.1f ms %s",
                    _shown(request.method, _METHOD),
                    _shown(request.path, _PATH),
                    status,
                    (ended - note.began) * 1000,
                    request.id,
                )

    def _finish(self, request: Request, response: AnyResponse | None, ended: float) -> None:
        """Hand what is known of a request to its record."""
        note = request.note
        note.family = note.family or _family_of(note.path)
        if response is None:
            note.status = request.served or (LEFT if request.gone else 500)
            note.broken = "" if request.served else "left" if request.gone else "cut"
        else:
            note.status = response.status
            if note.kept is not None and isinstance(response, Response):
                note.kept.add(response.body)
        note.refusal = request.refused
        note.caller = note.caller or self._context.callers.at_once(request)
        self._record.end(note, ended)

    async def _answer(self, request: Request) -> AnyResponse:
        try:
            _check_query(request)
            if backend := request.params.get("backend"):
                request.backend = self._context.backend(backend)
            if KEY in request.headers:
                return await self._idempotency.once(request, _handle)
            return await _handle(request)
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
        request.answer_headers["Allow"] = allowed
        return HttpRefusal(405, "wrong_method", f"{method} is not supported here, only {allowed}.")
    advice = ""
    if "/v1/v1/" in request.path:
        advice = "This client appends /v1 itself: leave it out of its base URL."
    return HttpRefusal(404, "no_such_path", f"There is nothing at {escaped(request.path)}.", advice=advice)


def _check_query(request: Request) -> None:
    """Raise HttpRefusal, 400, for a parameter that a strict route does not know; note it where it passes."""
    route = request.route
    if not request.query_string or route is None or (known := route.query) is None:
        return
    unknown = [name for name in request.query if name not in known]
    if not unknown:
        return
    if route.strict:
        only = f"only {' and '.join(sorted(known))}" if known else "nothing is"
        raise invalid(f'"{shown(unknown[0])}" is not a known parameter; {only}')
    request.ignore(unknown)


class _Guard:
    def __init__(self, allowed_hosts: Collection[str], allowed_origins: Collection[str]) -> None:
        """`*` among the hosts or the origins accepts any."""
        self._hosts, self._origins = frozenset(allowed_hosts), frozenset(allowed_origins)

    def check(self, request: Request) -> Response | None:
        """The answer to a request that no handler should see, or to a preflight; None for all others."""
        refusal = _malformed(request) or self._foreign_host(request) or self._foreign_page(request)
        if refusal is not None:
            response = answer_error(request, refusal, family_of(request))
            response.close = refusal.refusal.status == 415 and request.body_now() is None
            return response
        origin = request.headers.get("Origin")
        if origin is None:
            return None
        request.answer_headers |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        return _preflight(request) if request.method == "OPTIONS" else None

    def _foreign_host(self, request: Request) -> HttpRefusal | None:
        """Refuse names that point here from elsewhere (DNS rebinding)."""
        if "*" in self._hosts:
            return None
        named = [host] if (host := request.headers.get("Host")) is not None else []
        target = request.target
        if not target.startswith(("/", "*")):
            # A whole URL: its authority counts, whatever `Host` says (RFC 9112, 3.2.2).
            named.append(target.partition("://")[2].partition("/")[0].partition("?")[0])
        for host in named:
            name = _name_of(f"//{host}") if len(host) <= _LONGEST else ""
            if not (_is_loopback(name) or name in self._hosts):
                return HttpRefusal(
                    403,
                    "host_not_allowed",
                    f"Host not allowed: {host[:_CHARS]!r}.",
                    advice="Call Greenroom by localhost or 127.0.0.1. For a proxy in front of it, add the "
                    "proxy's name to the setting allowed_hosts.",
                )
        return None

    def _foreign_page(self, request: Request) -> HttpRefusal | None:
        """A page of another site may neither call us nor embed an image or a script from here."""
        if "*" in self._origins:
            return None
        origin = request.headers.get("Origin")
        if origin is not None:
            if origin in self._origins or (
                len(origin) <= _LONGEST and _ORIGIN.fullmatch(origin) and _is_loopback(_name_of(origin))
            ):
                return None
            return HttpRefusal(403, "origin_not_allowed", f"Origin not allowed: {origin[:_CHARS]!r}.")
        if request.headers.get("Sec-Fetch-Site") != "cross-site" or _is_a_plain_link(request):
            return None
        return HttpRefusal(403, "origin_not_allowed", "Pages of other sites may not use Greenroom.")


def _malformed(request: Request) -> HttpRefusal | None:
    if not _is_line(request.path, 2 * NAME):
        return _bad("bad_path", "The path must be one line of printable characters.")
    if request.query_string:
        query = request.query
        if len(query) > _QUERIES:
            return _bad("bad_query", f"There are too many query parameters: the limit is {_QUERIES}.")
        if not all(is_line(name) and is_line(value) for name, value in query.items()):
            return _bad("bad_query", "The query must be one line of printable characters.")
    for name, value in request.headers.items():
        if not _is_line(value.replace("\t", " "), 2 * NAME):
            # What is not UTF-8 was read as halves of characters.
            return _bad("bad_header", f"The header {escaped(name, 60)} must be printable UTF-8.")
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        return HttpRefusal(
            415,
            "encoded_body",
            f"A body with Content-Encoding {escaped(encoding, 40)} is not supported.",
            advice="Send it uncompressed.",
        )
    return None


def _is_line(text: str, longest: int) -> bool:
    """The same as `is_line`, quick for plain text."""
    return (len(text) <= longest and text.isascii() and text.isprintable()) or is_line(text, longest)


def _shown(text: str, longest: int) -> str:
    """The same as `escaped`, quick for plain text."""
    plain = len(text) <= longest and text.isascii() and text.isprintable()
    return text if plain else escaped(text, longest)


def _bad(code: str, message: str) -> HttpRefusal:
    return HttpRefusal(400, code, message)


def _is_a_plain_link(request: Request) -> bool:
    """A browser follows a plain link to here, which only reads."""
    return (
        request.method == "GET"
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
        and request.headers.get("Sec-Fetch-Dest") == "document"
        and not request.query_string
    )


def _preflight(request: Request) -> Response:
    asked = request.headers.get("Access-Control-Request-Headers", "*")
    if not _HEADER_NAMES.fullmatch(asked):
        refusal = _bad("bad_header", "Access-Control-Request-Headers must be a list of header names.")
        return answer_error(request, refusal, family_of(request))
    headers = {
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": asked,
        "Access-Control-Max-Age": "600",
    }
    return Response(status=204, headers=headers)


@lru_cache(maxsize=256)
def _family_of(path: str) -> str:
    family = uncached_family(path)
    return "management" if family == "text" else family


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
