"""What every request must be before a handler sees it.

It uses one of our host names, and comes from no web page of another site. Its path, query and headers are
printable and of a bounded length, and its body is not compressed. (Fields of bodies are bounded by their
types: `actors.limits`.) What is refused here reaches no handler, log, cache or journal as it was sent.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import urlsplit

from greenroom.actors.limits import NAME, escaped, is_line
from greenroom.runner.http.errors import HttpRefusal, answer_error, family_of
from greenroom.runner.http.port import Request, Response

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


class Guard:
    """The checks of one front door."""

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
        request.cors = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
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
                    advice="Call Greenroom by localhost or 127.0.0.1.",
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
    if not is_line(request.path, 2 * NAME):
        return _bad("bad_path", "The path must be one line of printable characters.")
    if request.query_string:
        query = request.query
        if len(query) > _QUERIES:
            return _bad("bad_query", f"There are too many query parameters: the limit is {_QUERIES}.")
        if not all(is_line(name) and is_line(value) for name, value in query.items()):
            return _bad("bad_query", "The query must be one line of printable characters.")
    for name, value in request.headers.items():
        if not is_line(value.replace("\t", " "), 2 * NAME):
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
