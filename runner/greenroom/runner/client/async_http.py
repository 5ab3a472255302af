"""The client's requests on an event loop, without threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncGenerator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from greenroom.runner.client.calls import Call
from greenroom.runner.client.errors import Unreachable
from greenroom.runner.client.http_client import (
    PROOF_LIMIT,
    PROOF_WITHIN,
    HttpClient,
    NobodyThere,
    NotProven,
    broken,
    check_proof,
    keep_watch,
    prepared,
    proof_request,
    refused,
    unproven,
    unreachable,
)
from greenroom.runner.client.streams import AGENT
from greenroom.runner.client.wire import (
    PIECE,
    SOCKET,
    AnswerReader,
    BrokenOff,
    NotHttp,
    Reading,
    request_bytes,
)
from greenroom.runner.proof import address_of, make_challenge

T = TypeVar("T")
_MOST = 2**28
"""Bytes of an answer that is read as a whole."""


async def steps(http: HttpClient, call: Call[T, Any]) -> AsyncGenerator[T]:
    """Send the request, and take the answer as it comes. Closing the iterator ends the request."""
    answer = await ask(http, call)
    try:
        while (line := await answer.line()) is not None:
            for step in call.take(line):
                yield step
    finally:
        answer.close()


async def ask(http: HttpClient, call: Call[Any, Any]) -> AsyncAnswer:
    """Send the request, and wait for the head of its answer. Raises RequestRefused, Unreachable."""
    call.url = http.url
    connection = _Connection(call.timeout)
    try:
        try:
            await connection.ask(http, call)
        except (NobodyThere, NotHttp, NotProven, BrokenOff, OSError) as error:
            raise unreachable(http.url, error, f"{call.method} {call.path}", call.timeout) from error
        await connection.check()
    except BaseException:
        connection.close()
        raise
    return AsyncAnswer(http.url, connection)


class AsyncAnswer:
    """An answer whose head has come."""

    def __init__(self, url: str, connection: _Connection) -> None:
        self.headers = connection.answer.headers
        """By lower-case name."""
        self._url = url
        self._connection = connection

    async def line(self) -> str | None:
        """The next line without its end; None at the end. If it is cancelled, the next call goes on with it.

        Raises Unreachable.
        """
        try:
            line = await self._connection.line()
        except (BrokenOff, OSError) as error:
            raise Unreachable(self._url, broken(error)) from error
        return line.decode("utf-8", "replace").rstrip("\r\n") if line else None

    def close(self) -> None:
        """End the request: a task that waits for a line gets the end. Idempotent."""
        self._connection.close()


class _Connection:
    """One request, and its answer."""

    def __init__(self, timeout: float | None) -> None:
        self.answer = AnswerReader()
        self._pid = os.getpid()
        self._timeout = timeout
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._line: Reading[bytes] | None = None
        """The line that a cancelled task has begun to read."""

    async def ask(self, http: HttpClient, call: Call[T, Any]) -> None:
        """Up to the head of the answer."""
        async with asyncio.timeout(self._timeout):
            try:
                self._reader, self._writer = await _connect(http)
                if (own := self._writer.get_extra_info("socket")).family != socket.AF_UNIX:
                    keep_watch(own)
            except OSError as error:
                raise NobodyThere(error.strerror or str(error)) from error
        if http.secret:
            try:
                async with asyncio.timeout(PROOF_WITHIN):
                    challenge = make_challenge()
                    self._writer.write(proof_request(http.url, challenge))
                    await self.run(self.answer.head("GET"))
                    peer = address_of(self._writer.get_extra_info("peername"))
                    check_proof(await self.run(self.answer.rest(PROOF_LIMIT)), http.secret, challenge, peer)
            except (OSError, BrokenOff) as error:
                # Nothing of the request was sent.
                raise NobodyThere(unproven(error, PROOF_WITHIN)) from error
        headers, body = prepared(call.body, call.accept, AGENT)
        self._writer.write(request_bytes(http.url, call.method, call.path, headers, body))
        await self._writer.drain()
        await self.run(self.answer.head(call.method))

    async def check(self) -> None:
        """Raise RequestRefused unless the status is one of 2xx."""
        answer = self.answer
        if not 200 <= answer.status < 300:
            raise refused(answer.status, answer.reason, await self.run(answer.rest(_MOST)))

    async def line(self) -> bytes:
        """The next line with its end; empty at the end."""
        begun = self._line is not None
        self._line = self._line or self.answer.line()
        line = await self.run(self._line, is_begun=begun)
        self._line = None
        return line

    async def run(self, reading: Reading[T], *, is_begun: bool = False) -> T:
        try:
            if not is_begun:
                next(reading)
            while True:
                async with asyncio.timeout(self._timeout):
                    came = await self._reader.read(PIECE)
                reading.send(came)
        except StopIteration as done:
            result: T = done.value
            return result

    def close(self) -> None:
        if self._writer is not None:
            if self._pid == os.getpid():
                # A process that was forked meanwhile has it too.
                own = self._writer.get_extra_info("socket")
                with contextlib.suppress(OSError), socket.fromfd(own.fileno(), own.family, own.type) as same:
                    same.shutdown(socket.SHUT_RDWR)
            # At once, so that no more of the answer is computed.
            self._writer.transport.abort()


async def _connect(http: HttpClient) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if http.dial is not None:
        own = http.dial()
        own.setblocking(False)
        return await asyncio.open_connection(sock=own)
    if http.url.startswith(SOCKET):
        return await asyncio.open_unix_connection(http.url.removeprefix(SOCKET))
    parts = urlsplit(http.url)
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    return await asyncio.open_connection(parts.hostname, parts.port or (443 if secure else 80), ssl=secure)
