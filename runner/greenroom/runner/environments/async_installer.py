"""The installer for asyncio: the same calls, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self, TypeVar

from greenroom.actors.kernel.system import stop_in_thread
from greenroom.runner.client.results import WhyResult
from greenroom.runner.daemon_lock import HomeLocked
from greenroom.runner.environments.calls import EnsureCall, OnProgress
from greenroom.runner.environments.host import EnvironmentHost
from greenroom.runner.environments.installed import InstalledEnvironment
from greenroom.runner.environments.opening import POLL, SharedHost, still_locked
from greenroom.runner.environments.requests import EnvironmentRequests
from greenroom.runner.environments.streams import AsyncEnsureStream

if TYPE_CHECKING:
    from greenroom.actors.retry import GivenRetry
    from greenroom.runner.environments.installer import Installer

R = TypeVar("R")


class AsyncInstaller(EnvironmentRequests[Coroutine[Any, Any, InstalledEnvironment], AsyncEnsureStream]):
    """An `Installer` for asyncio: `async with Installer(home) as installer`.

    It has the methods of `Installer`, whose docstrings describe the arguments; here they are awaited, and
    with `stream=True` they return an asynchronous iterator. Nothing blocks the event loop. Cancelling a task
    ends its call. Any number of tasks may use it.
    """

    def __init__(
        self,
        installer: Installer,
        of_home: SharedHost,
        wait: float,
        retry: GivenRetry | None,
    ) -> None:
        self.home = installer.home
        """The folder."""
        self._installer = installer
        self._shared = of_home
        self._wait = wait
        self._retry = retry

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close it, as `Installer.close` does."""
        await stop_in_thread(self._installer.close)

    async def environments(self) -> list[InstalledEnvironment]:
        """The complete environments, sorted by name."""
        return await self._aside(self._installer.environments)

    async def remove(self, what: str | InstalledEnvironment) -> int:
        """Remove an environment, and return the bytes freed: see `Installer.remove`."""
        return await self._aside(lambda: self._installer.remove(what))

    async def why(self, what: str | InstalledEnvironment) -> WhyResult:
        """Explain the state of an environment: see `Installer.why`."""
        return await self._aside(lambda: self._installer.why(what))

    # inside

    def _ensured(
        self, call: EnsureCall, stream: bool, progress: OnProgress | None
    ) -> Coroutine[Any, Any, InstalledEnvironment] | AsyncEnsureStream:
        steps = AsyncEnsureStream(self._open, call)
        return steps if stream else _result(steps, progress)

    async def _aside(self, work: Callable[[], R]) -> R:
        await self._open()
        return await asyncio.to_thread(work)

    async def _open(self) -> EnvironmentHost:
        until = time.monotonic() + self._wait
        while True:
            try:
                # Shielded: a thread cannot be cancelled, and what it starts is closed with the installer.
                return await asyncio.shield(asyncio.to_thread(self._shared.host))
            except HomeLocked as error:
                if time.monotonic() >= until:
                    raise still_locked(error, self.home, self._wait) from error
            await asyncio.sleep(POLL)

    def __repr__(self) -> str:
        return f"{self._installer!r} for asyncio"


async def _result(steps: AsyncEnsureStream, progress: OnProgress | None) -> InstalledEnvironment:
    async with steps:
        async for step in steps:
            if progress is not None:
                progress(step)
        return await steps.result()
