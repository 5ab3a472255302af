"""Which headers pass between a client and an engine."""

from __future__ import annotations

from aiohttp import web
from greenroom.runner.http.wire import Answer
from multidict import CIMultiDict

REQUEST_ID = "X-Request-Id"
ID: web.RequestKey[str] = web.RequestKey("greenroom.id", str)

_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer"
    " transfer-encoding upgrade".split()
)
_NOT_FORWARDED = _HOP_BY_HOP | frozenset(
    # What concerns us and not the engine, what is the client's secret, what would change the bytes.
    "accept-encoding authorization content-encoding content-length cookie expect forwarded host origin"
    " referer x-api-key x-forwarded-for x-forwarded-host x-forwarded-proto x-preload-only"
    " x-request-id".split()
)
_NOT_RETURNED = _HOP_BY_HOP | frozenset(
    "content-length date server set-cookie access-control-allow-origin access-control-allow-credentials"
    " access-control-allow-headers access-control-allow-methods x-request-id".split()
)


def request_id_of(request: web.Request) -> str:
    """The id this request was given at the door."""
    request_id: str = request.get(ID, "")
    return request_id


def forwarded(request: web.Request) -> CIMultiDict[str]:
    """A request's headers, as the engine gets them.

    What comes to an engine has been read as JSON. Clients that call it a form (`curl -d` by itself does) are
    understood here, but vLLM would refuse them.
    """
    headers = CIMultiDict(
        [(name, value) for name, value in request.headers.items() if name.lower() not in _NOT_FORWARDED]
    )
    headers["Content-Type"] = "application/json"
    return headers


def returned(answer: Answer) -> CIMultiDict[str]:
    """An answer's headers, as the client gets them."""
    return CIMultiDict(
        [(name, value) for name, value in answer.headers.items() if name.lower() not in _NOT_RETURNED]
    )
