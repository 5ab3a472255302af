"""`/openapi.json` and `/docs`: what this front door offers, for programs and for people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from greenroom.runner.http.port import JSON, Request, Response, Route

_PAGE = Path(__file__).with_name("page.html")
_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page loads nothing but the document."""


class ApiDescription:
    def __init__(self, routes: Callable[[], Iterable[Route]]) -> None:
        self._routes = routes
        self._document: dict[str, bytes] = {}
        """By the prefix under which the front door is mounted."""
        self._making = asyncio.Lock()

    async def document(self, request: Request) -> Response:
        """The document. It is made when it is first asked for."""
        prefix = request.path.removesuffix("/openapi.json")
        async with self._making:
            if prefix not in self._document:
                self._document[prefix] = await asyncio.to_thread(self._made, prefix)
        return Response(self._document[prefix], content_type=JSON)

    async def page(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        text = await asyncio.to_thread(_PAGE.read_bytes)
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(text, content_type="text/html; charset=utf-8", headers=headers)

    def _made(self, prefix: str) -> bytes:
        from greenroom.runner.http.openapi.document import described

        return msgspec.json.encode(described(self._routes(), server=prefix or "/"))
