"""Admits requests that use one of our host names, and refuses web pages of other sites."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection
from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from greenroom.runner.http.errors import HttpRefusal, answer_error, family_of

CORS: web.RequestKey[dict[str, str]] = web.RequestKey("greenroom.cors", dict)
"""Headers for the answer to a web page that may call."""

_METHODS = "GET, POST, DELETE"
_CHARS = 100
"""Characters of a client's own text that are repeated to it."""
_LONGEST = 300
"""Characters of a host or an origin; names end at 253."""
_ORIGIN = re.compile(r"https?://[^/?#@\s\\]+")
"""As browsers write it. A page of an extension or a file is no page of this machine, whatever its name."""
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]{0,1024}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(allowed_hosts: Collection[str], allowed_origins: Collection[str]) -> Middleware:
    """Refuses everybody else. `*` among the hosts or the origins lets in any."""
    hosts, origins = frozenset(allowed_hosts), frozenset(allowed_origins)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = _of_the_host(request, hosts) or _of_the_page(request, origins)
        if refusal is not None:
            return answer_error(request, refusal, family_of(request))
        origin = request.headers.get("Origin")
        if origin is None:
            return await handler(request)
        request[CORS] = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if request.method == "OPTIONS":
            return _preflight(request)
        return await handler(request)

    return middleware


def _of_the_host(request: web.Request, hosts: frozenset[str]) -> HttpRefusal | None:
    """Refuse names that point here from elsewhere (DNS rebinding)."""
    if "*" in hosts:
        return None
    named = [host] if (host := request.headers.get("Host")) is not None else []
    target = request.raw_path
    if not target.startswith(("/", "*")):
        # A whole URL: its authority counts, whatever `Host` says (RFC 9112, 3.2.2).
        named.append(target.partition("://")[2].partition("/")[0].partition("?")[0])
    for host in named:
        name = _name_of(f"//{host}") if len(host) <= _LONGEST else ""
        if not (_is_loopback(name) or name in hosts):
            return HttpRefusal(
                403,
                "host_not_allowed",
                f"Host not allowed: {host[:_CHARS]!r}.",
                advice="Call Greenroom by localhost or 127.0.0.1.",
            )
    return None


def _of_the_page(request: web.Request, origins: frozenset[str]) -> HttpRefusal | None:
    """A page of another site may neither call us nor embed an image or a script from here."""
    if "*" in origins:
        return None
    origin = request.headers.get("Origin")
    if origin is not None:
        if origin in origins or (
            len(origin) <= _LONGEST and _ORIGIN.fullmatch(origin) and _is_loopback(_name_of(origin))
        ):
            return None
        return HttpRefusal(403, "origin_not_allowed", f"Origin not allowed: {origin[:_CHARS]!r}.")
    if request.headers.get("Sec-Fetch-Site") != "cross-site" or _is_a_plain_link(request):
        return None
    return HttpRefusal(403, "origin_not_allowed", "Pages of other sites may not use Greenroom.")


def _is_a_plain_link(request: web.Request) -> bool:
    """A browser follows a plain link to here, which only reads."""
    return (
        request.method == "GET"
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
        and request.headers.get("Sec-Fetch-Dest") == "document"
        and not request.query_string
    )


def _preflight(request: web.Request) -> web.StreamResponse:
    asked = request.headers.get("Access-Control-Request-Headers", "*")
    if not _HEADER_NAMES.fullmatch(asked):
        refusal = HttpRefusal(
            400, "bad_header", "Access-Control-Request-Headers must be a list of header names."
        )
        return answer_error(request, refusal, family_of(request))
    headers = {
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": asked,
        "Access-Control-Max-Age": "600",
    }
    return web.Response(status=204, headers=headers)


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
