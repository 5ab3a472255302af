"""Which headers pass between a client and an engine. Others do not: a header nobody has thought of may carry
a client's secret to an engine, or make a browser do what the engine says."""

from __future__ import annotations

import re

from aiohttp import web
from multidict import CIMultiDict

from greenroom.runner.http.wire import Answer

REQUEST_ID = "X-Request-Id"
IGNORED_HEADER = "X-Greenroom-Ignored"
"""Names of what a request said that is not known here."""
ID: web.RequestKey[str] = web.RequestKey("greenroom.id", str)

_FORWARDED = frozenset(
    "accept accept-language anthropic-beta anthropic-version traceparent user-agent".split()
)
_RETURNED = frozenset("cache-control content-encoding content-type".split())
_PLAIN = re.compile(r"[\x20-\x7e\t]*")
"""A value that can be sent on: an engine's may hold anything."""


def request_id_of(request: web.BaseRequest) -> str:
    """The id this request was given at the door."""
    request_id: str = request.get(ID, "")
    return request_id


def forwarded(request: web.Request) -> CIMultiDict[str]:
    """A request's headers, as the engine gets them.

    What comes to an engine has been read as JSON. Clients that call it a form (`curl -d` by itself does) are
    understood here, but vLLM would refuse them.
    """
    headers = CIMultiDict(
        [(name, value) for name, value in request.headers.items() if name.lower() in _FORWARDED]
    )
    headers["Content-Type"] = "application/json"
    return headers


def returned(answer: Answer) -> CIMultiDict[str]:
    """An answer's headers, as the client gets them."""
    return CIMultiDict(
        [
            (name, value)
            for name, value in answer.headers.items()
            if name.lower() in _RETURNED and _PLAIN.fullmatch(value)
        ]
    )
