"""The progress of an installation, step by step, and its result: on a thread, and on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, Self

from greenroom.actors.kernel.answers import Reply
from greenroom.actors.kernel.core import Command
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.values import Progress
from greenroom.runner.client.results import JobProgress
from greenroom.runner.environments.calls import EnsureCall, told, unfinished
from greenroom.runner.environments.errors import failed
from greenroom.runner.environments.host import EnvironmentHost
from greenroom.runner.environments.installed import InstalledEnvironment


class EnsureStream(Iterator[JobProgress]):
    """The progress of one `ensure`, which starts when the first step is asked for.

    `close`, leaving a `with` block, Ctrl-C or dropping the iterator ends it; the job is cancelled unless
    others wait for it. For one thread at a time. Iterating may raise GreenroomError.
    """

    def __init__(self, open_host: Callable[[], EnvironmentHost], call: EnsureCall) -> None:
        self._found: InstalledEnvironment | None = None
        self._steps = self._run(open_host, call)

    def __next__(self) -> JobProgress:
        return next(self._steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it. Idempotent."""
        self._steps.close()

    def result(self) -> InstalledEnvironment:
        """Take the steps that are left, and return what is installed. Raises GreenroomError."""
        for _ in self._steps:
            pass
        if self._found is None:
            raise unfinished()
        return self._found

    def _run(self, open_host: Callable[[], EnvironmentHost], call: EnsureCall) -> Generator[JobProgress]:
        host = open_host()
        news: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
        unlisten = host.board.listen(call.job, news.put)
        reply: Reply[Any] | None = None
        try:
            steps, came = call.steps(host), None
            while True:
                try:
                    step = steps.send(came)
                except StopIteration as end:
                    self._found = end.value
                    return
                if not isinstance(step, Command):
                    came = step()
                    continue
                reply = host.ask(step)
                reply.on_done(lambda: news.put(None))
                while (progress := news.get()) is not None:
                    yield told(progress)
                came = reply.get(timeout=0)
        except KernelError as error:
            raise failed(error, host.home, call.requirement) from error
        finally:
            unlisten()
            if reply is not None and not reply.done():
                call.leave(host)


class AsyncEnsureStream(AsyncIterator[JobProgress]):
    """An `EnsureStream` for asyncio: `aclose`, leaving an `async with` block or a cancelled task ends it."""

    def __init__(self, open_host: Callable[[], Awaitable[EnvironmentHost]], call: EnsureCall) -> None:
        self._found: InstalledEnvironment | None = None
        self._steps = self._run(open_host, call)

    async def __anext__(self) -> JobProgress:
        return await anext(self._steps)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it. Idempotent."""
        await self._steps.aclose()

    async def result(self) -> InstalledEnvironment:
        """Take the steps that are left, and return what is installed. Raises GreenroomError."""
        async for _ in self._steps:
            pass
        if self._found is None:
            raise unfinished()
        return self._found

    async def _run(
        self, open_host: Callable[[], Awaitable[EnvironmentHost]], call: EnsureCall
    ) -> AsyncGenerator[JobProgress]:
        host, loop = await open_host(), asyncio.get_running_loop()
        news: asyncio.Queue[Progress | None] = asyncio.Queue()

        def put(progress: Progress | None = None) -> None:
            # The loop may have been closed meanwhile; then no one waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(news.put_nowait, progress)

        unlisten = host.board.listen(call.job, put)
        reply: Reply[Any] | None = None
        try:
            steps, came = call.steps(host), None
            while True:
                try:
                    step = steps.send(came)
                except StopIteration as end:
                    self._found = end.value
                    return
                if not isinstance(step, Command):
                    came = await asyncio.to_thread(step)
                    continue
                reply = host.ask(step)
                reply.on_done(put)
                while (progress := await news.get()) is not None:
                    yield told(progress)
                came = reply.get(timeout=0)
        except KernelError as error:
            raise failed(error, host.home, call.requirement) from error
        finally:
            unlisten()
            if reply is not None and not reply.done():
                call.leave(host)
