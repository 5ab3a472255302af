"""The connections to engines: one pool an endpoint, as many connections as there are requests."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Collection, MutableMapping

import aiohttp
from yarl import URL

_KEEP_ALIVE = 2.0
"""Seconds an idle connection is kept: less than any engine keeps it, so that none is found closed."""
_CROWDED = 10.0
"""Seconds to go on knocking at an engine whose queue of new connections is full."""
_PIECE = 256 * 1024
"""Bytes that are written to an engine at once."""
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10.0)


class Unreached(Exception):
    """The engine could not be connected to; it has seen nothing of the request."""


class Lost(Exception):
    """The engine broke off before it had answered anything."""


class _Pool:
    __slots__ = ("base", "session", "urls")

    def __init__(self, endpoint: str) -> None:
        connector: aiohttp.BaseConnector
        if endpoint.startswith("http://"):
            self.base = endpoint.rstrip("/")
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
        else:
            self.base = "http://localhost"
            connector = aiohttp.UnixConnector(path=endpoint, limit=0, keepalive_timeout=_KEEP_ALIVE)
        self.session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_TIMEOUT,
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        )
        self.urls: dict[str, URL] = {}

    def url(self, path: str) -> URL:
        url = self.urls.get(path)
        if url is None:
            url = URL(self.base + path, encoded=True)
            if "?" not in path:
                self.urls[path] = url
        return url


class Upstreams:
    """All pools of one front door. Lives in one event loop."""

    def __init__(self, live: Callable[[], Collection[str]]) -> None:
        """`live` tells the endpoints of all engines there are; pools of others are closed in passing."""
        self._pools: dict[str, _Pool] = {}
        self._live = live

    async def post(
        self, endpoint: str, path: str, body: bytes, headers: MutableMapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of the answer. Raises Unreached or Lost."""
        pool = self._pools.get(endpoint)
        if pool is None:
            pool = await self._open(endpoint)
        # Said in any case: some engines cannot read a body that comes in chunks.
        headers["Content-Length"] = str(len(body))
        delay, waited = 0.005, 0.0
        while True:
            try:
                return await pool.session.request(
                    "POST", pool.url(path), data=_data(body), headers=headers, allow_redirects=False
                )
            except aiohttp.ClientConnectorError as error:
                # A unix socket says EAGAIN when its backlog is full, and some engines have room for five.
                if error.os_error.errno != errno.EAGAIN or waited >= _CROWDED:
                    raise Unreached(str(error)) from error
            except (aiohttp.ClientError, OSError) as error:
                raise Lost(str(error) or type(error).__name__) from error
            await asyncio.sleep(delay)
            waited += delay
            delay = min(delay * 2, 0.1)

    async def close(self) -> None:
        """Close every pool."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.session.close()

    async def _open(self, endpoint: str) -> _Pool:
        # An endpoint is an engine's own and never comes again, so its pool would stay for ever.
        live = set(self._live())
        for old in [known for known in self._pools if known not in live]:
            await self._pools.pop(old).session.close()
        return self._pools.setdefault(endpoint, _Pool(endpoint))


def _data(body: bytes) -> bytes | AsyncIterator[bytes]:
    return body if len(body) <= _PIECE else _pieces(body)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    # Megabytes written at once would hold up every other stream.
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]
