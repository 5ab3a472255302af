"""Reading request bodies: bounded in size and time, and no more of them than is needed."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from aiohttp import web
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.models.references import shown

BODY: web.RequestKey[bytes] = web.RequestKey("greenroom.body", bytes)
"""A body that was read before its handler came to it."""

_BODY_TIMEOUT = 120.0
"""Seconds for a whole body: generous for 10 MiB on a bad line, and still an end."""

NOT_UNDERSTOOD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding somebody else's JSON may raise: brackets in brackets go as deep as their sender likes."""

T = TypeVar("T")
_FIELD = re.compile(r"`\$\.(\w+)")
"""As msgspec names the place of a wrong type."""
_UNKNOWN = re.compile(r"unknown field `(.*?)`", re.DOTALL)
"""As msgspec names what a struct that forbids it does not have."""


class Routing(msgspec.Struct, frozen=True, gc=False):
    """What routing needs of an inference request; all the rest is the engine's."""

    model: str = ""
    stream: bool | None = False
    keep_alive: str | float | None = None
    """How long the model shall stay: a duration, or a number of seconds; negative means for ever."""


_decode_routing = msgspec.json.Decoder(Routing).decode


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body.

    `limit` is in bytes and holds for what arrives unpacked too, also in a host's application with other
    limits. Raises HttpRefusal: 413 past the limit, 408 when it does not come, 400 when it is cut off.
    """
    known: bytes | None = request.get(BODY)
    if known is not None:
        return known
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    content = request.content
    if content.is_eof():
        # The usual case: it has come together with the head.
        body = content.read_nowait()
        if len(body) > limit:
            raise _too_large(limit)
        return body
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            while not content.at_eof():
                chunk = await content.readany()
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError:
        raise HttpRefusal(408, "body_timeout", "The request's body did not arrive in time.") from None
    except web.RequestPayloadError:
        raise HttpRefusal(400, "bad_body", "The request's body was cut off or badly encoded.") from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def routing_of(body: bytes) -> Routing:
    """What routing needs. Raises HttpRefusal: 400 for broken JSON or a missing model."""
    try:
        routing = _decode_routing(body or b"{}")
    except NOT_UNDERSTOOD as error:
        raise _not_understood(error) from None
    if not routing.model.strip():
        raise HttpRefusal(
            400,
            "model_required",
            'model is required: name one in the body, such as {"model": "smollm2"}.',
            param="model",
        )
    return routing


async def read_json(request: web.Request, limit: int, kind: type[T], what: str = "") -> T:
    """The body as a struct. `what` is said when it does not fit, such as `backend is required`."""
    body = await read_body(request, limit)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except NOT_UNDERSTOOD as error:
        raise _not_understood(error, what) from None


def _not_understood(error: Exception, what: str = "") -> HttpRefusal:
    # msgspec names the field of a wrong type; for broken JSON it names the byte. Neither shows the content.
    if isinstance(error, RecursionError):
        what = what or "JSON is nested too deeply"
    field = _FIELD.search(str(error)) if isinstance(error, msgspec.ValidationError) else None
    # What is wrong with another field than the one that must be there is no matter of that one.
    if isinstance(error, msgspec.ValidationError) and (unknown := _UNKNOWN.search(str(error))):
        what = f'"{shown(unknown[1])}" is not known here'
    detail = str(error) if field is not None and not what.startswith(field[1]) else what or str(error)
    param = "model" if isinstance(error, msgspec.ValidationError) and "$.model" in str(error) else None
    return HttpRefusal(400, "invalid_request", f"invalid request: {detail}", param=param)


def _too_large(limit: int) -> HttpRefusal:
    mebibytes = limit / 2**20
    return HttpRefusal(
        413,
        "request_too_large",
        f"request too large: the body is bigger than {mebibytes:g} MiB.",
        advice="Send less, or raise max_body in the configuration.",
    )
