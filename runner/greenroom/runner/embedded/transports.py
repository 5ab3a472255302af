"""Transports of httpx that ask the Greenroom inside this program: no port, and the same front door and gate.

httpx and httpx2 have the same classes. Official clients use one or the other, so the module is an argument.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar, cast

from greenroom.actors.kernel.errors import Forked
from greenroom.runner.daemon import Greenroom
from greenroom.runner.embedded.inside import Cut, InnerRequest, Inside
from greenroom.runner.http.app import not_running
from greenroom.runner.http.errors import error_object, family_of_path

T = TypeVar("T")


def transport(greenroom: Greenroom, module: ModuleType | None = None) -> Any:
    """An `httpx.BaseTransport` for `httpx.Client(transport=…)`.

    Any thread may use it. It keeps nothing open: closing a response cancels its request, and the Greenroom's
    stop ends all of them. `module` is httpx by default, or httpx2. Raises ModuleNotFoundError without it.
    """
    httpx: Any = module or _httpx()
    return _made("GreenroomTransport", _Transport, httpx.BaseTransport)(greenroom, httpx)


def async_transport(greenroom: Greenroom, module: ModuleType | None = None) -> Any:
    """The same for `httpx.AsyncClient`, in any loop of asyncio."""
    httpx: Any = module or _httpx()
    return _made("AsyncGreenroomTransport", _AsyncTransport, httpx.AsyncBaseTransport)(greenroom, httpx)


def _httpx() -> ModuleType:
    try:
        return importlib.import_module("httpx")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("httpx is not installed: pip install httpx", name="httpx") from error


def _made(name: str, ours: type[T], theirs: type) -> Callable[..., T]:
    """Ours with their base class, which httpx insists on."""
    return cast("Callable[..., T]", type(name, (ours, theirs), {}))


class _Asking:
    def __init__(self, greenroom: Greenroom, httpx: Any) -> None:
        self._greenroom = greenroom
        self._httpx = httpx

    def _begin(self, request: Any) -> InnerRequest:
        try:
            inside = Inside.of(self._greenroom)
            return inside.ask(
                request.method, request.url.raw_path, request.url.query, list(request.headers.raw)
            )
        except (ConnectionError, Forked) as error:
            raise self._httpx.ConnectError(str(error), request=request) from error

    def _refused(self, request: Any) -> Any:
        """The answer while the Greenroom does not run, for which no thread is started; None while it runs."""
        if self._greenroom.is_running:
            return None
        refusal = not_running("Start it first, and ask before it is stopped.").refusal
        said = error_object(refusal, None, family_of_path(request.url.path))
        return self._httpx.Response(503, json=said, headers={"x-should-retry": "false"})

    def _patience(self, request: Any) -> tuple[float | None, Callable[[], Exception]]:
        """Seconds that an answer, and each piece of it, may take to come, and what is raised then."""
        seconds = request.extensions.get("timeout", {}).get("read")
        return seconds, lambda: self._httpx.ReadTimeout(
            f"Greenroom has sent nothing for {seconds:g} s.", request=request
        )

    def _cut(self, error: Exception, request: Any) -> Exception:
        cut: Exception = self._httpx.RemoteProtocolError(str(error), request=request)
        return cut


class _Transport(_Asking):
    def __init__(self, greenroom: Greenroom, httpx: Any) -> None:
        super().__init__(greenroom, httpx)
        self._body = _made("Body", _Body, httpx.SyncByteStream)

    def handle_request(self, request: Any) -> Any:
        if (refused := self._refused(request)) is not None:
            return refused
        (seconds, late), exchange = self._patience(request), self._begin(request)

        def wait(future: concurrent.futures.Future[T]) -> T:
            try:
                return future.result(seconds)
            except (Cut, concurrent.futures.CancelledError) as error:
                raise self._cut(error, request) from error
            except BaseException as error:
                exchange.leave()
                if isinstance(error, TimeoutError) and not future.done():
                    raise late() from error
                raise

        fed: concurrent.futures.Future[bool] | None = None
        for piece in request.stream:
            if fed is not None and not wait(fed):
                break
            fed = exchange.feed(piece) if piece else fed
        exchange.feed(b"")
        status, headers = wait(exchange.head())
        return self._httpx.Response(status, headers=headers, stream=self._body(exchange, wait))


class _Body:
    def __init__(
        self, exchange: InnerRequest, wait: Callable[[concurrent.futures.Future[bytes]], bytes]
    ) -> None:
        self._exchange = exchange
        self._wait = wait

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._wait(self._exchange.read()):
            yield piece

    def close(self) -> None:
        self._exchange.leave()

    def __del__(self) -> None:
        self._exchange.leave()  # a stream that is neither read on nor closed


class _AsyncTransport(_Asking):
    def __init__(self, greenroom: Greenroom, httpx: Any) -> None:
        super().__init__(greenroom, httpx)
        self._body = _made("AsyncBody", _AsyncBody, httpx.AsyncByteStream)

    async def handle_async_request(self, request: Any) -> Any:
        if (refused := self._refused(request)) is not None:
            return refused
        (seconds, late), exchange = self._patience(request), self._begin(request)

        async def wait(future: concurrent.futures.Future[T]) -> T:
            bound = asyncio.timeout(seconds)
            try:
                async with bound:
                    return await asyncio.wrap_future(future)
            except Cut as error:
                raise self._cut(error, request) from error
            except BaseException as error:
                exchange.leave()
                if bound.expired():
                    raise late() from error
                raise

        fed: concurrent.futures.Future[bool] | None = None
        async for piece in request.stream:
            if fed is not None and not await wait(fed):
                break
            fed = exchange.feed(piece) if piece else fed
        exchange.feed(b"")
        status, headers = await wait(exchange.head())
        return self._httpx.Response(status, headers=headers, stream=self._body(exchange, wait))


class _AsyncBody:
    def __init__(self, exchange: InnerRequest, wait: Any) -> None:
        self._exchange = exchange
        self._wait = wait

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._wait(self._exchange.read()):
            yield piece

    async def aclose(self) -> None:
        self._exchange.leave()

    def __del__(self) -> None:
        self._exchange.leave()
