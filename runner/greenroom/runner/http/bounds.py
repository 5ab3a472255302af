"""What every request must be, whatever its route, before anything looks at it.

The bodies' fields are bounded by their types (`actors.limits`); here it is the rest: path, query, headers and
how the body is packed. What is refused here reaches no handler, no log, no cache and no journal as it came.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from greenroom.actors.limits import NAME, escaped, is_line
from greenroom.runner.http.bodies import IGNORED
from greenroom.runner.http.errors import HttpRefusal, answer_error, family_of
from greenroom.runner.http.malformed import Connection

_QUERIES = 32
"""Names after the `?`."""
_SHOWN = 20
"""Fields that are told back as ignored."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def bounded() -> Middleware:
    """Refuses what no handler should see."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = _refusal(request)
        if refusal is None:
            return await handler(request)
        response = answer_error(request, refusal, family_of(request))
        if refusal.refusal.status == 415 and not request.content.is_eof():
            return await _cut_off(request, response)
        return response

    return middleware


def ignored(request: web.Request) -> str:
    """What the request said that is not known here, for a header; empty when it said nothing such."""
    names = request.get(IGNORED, [])
    told = [escaped(name, 60).encode("ascii", "backslashreplace").decode() for name in names[:_SHOWN]]
    return ", ".join(told) + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _refusal(request: web.Request) -> HttpRefusal | None:
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


async def _cut_off(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Answer, and read no more: a host's aiohttp would unpack what is still to come, to throw it away."""
    response.force_close()
    if isinstance(request.protocol, Connection):
        return response  # ours does not
    await response.prepare(request)
    await response.write_eof()
    if request.protocol is not None:
        request.protocol.force_close()
    return response
