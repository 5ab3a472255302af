"""Serves an application, and answers what cannot be read as HTTP in our words.

aiohttp by itself logs a traceback for each such request, with the line or header in question, and repeats
that to the client. Here it is one line, with nothing of what was sent. Bodies are not unpacked: see `bounds`.
"""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import (
    BadHttpMethod,
    BadStatusLine,
    HttpProcessingError,
    InvalidHeader,
    LineTooLong,
)

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.errors import answer

_log = logging.getLogger(__name__)

_WHAT = (
    (LineTooLong, "a header line is too long"),
    (InvalidHeader, "a header is malformed"),
    ((BadHttpMethod, BadStatusLine), "its first line is not a request line"),
)


class Runner(web.AppRunner):
    """An `AppRunner` whose server is ours."""

    __slots__ = ()

    def __init__(self, app: web.Application, **more: Any) -> None:
        super().__init__(app, auto_decompress=False, **more)

    async def _make_server(self) -> web.Server:
        # aiohttp offers no other way to say how connections are made.
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,  # noqa: SLF001 - there is no public one
            **made._kwargs,  # noqa: SLF001
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class Connection(web.RequestHandler):
    """One client's connection."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it repeats what was sent
    ) -> web.StreamResponse:
        """Answer a request that no handler could be given, and close."""
        if isinstance(exc, HttpProcessingError) and status < 500:
            what = next((what for kind, what in _WHAT if isinstance(exc, kind)), "it is not HTTP")
            _log.info("a request from %s cannot be read: %s", request.remote, what)
            refusal = Refusal(code="malformed_request", message=f"This request cannot be read: {what}.")
        else:
            _log.error("a request failed unexpectedly", exc_info=exc)
            refusal = Refusal(
                code="internal_error",
                message="Greenroom failed on this request.",
                advice="greenroom logs says why.",
                kind="internal",
            )
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has already begun")
        response = answer(request, refusal, "openai")
        response.force_close()
        return response
