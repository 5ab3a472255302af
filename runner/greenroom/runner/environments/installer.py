"""The installer, for programs of any kind."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Self, TypeVar

from greenroom.actors.installer.messages import Uninstall
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.retry import given_policy
from greenroom.runner.client.results import WhyResult
from greenroom.runner.daemon_lock import HomeLocked
from greenroom.runner.environments.calls import EnsureCall, OnProgress
from greenroom.runner.environments.errors import failed
from greenroom.runner.environments.host import EnvironmentHost
from greenroom.runner.environments.installed import InstalledEnvironment
from greenroom.runner.environments.opening import POLL, shared, still_locked
from greenroom.runner.environments.requests import EnvironmentRequests
from greenroom.runner.environments.streams import EnsureStream
from greenroom.runner.user_home import expanded

if TYPE_CHECKING:
    from greenroom.actors.retry import GivenRetry
    from greenroom.runner.environments.async_installer import AsyncInstaller

R = TypeVar("R")


class Installer(EnvironmentRequests[InstalledEnvironment, EnsureStream]):
    """Manages Python environments in a folder: `with Installer("~/.myapp/envs") as installer`.

    An environment is resolved, downloaded with every hash checked, and tested before it counts as installed.
    A journal in the folder records what happens; after a crash, complete environments are found again.
    Entering `with` or the first call opens it; `async with` gives an `AsyncInstaller`. Any number of threads
    may use it, and a process may open the same folder several times. Calls raise GreenroomError:
    `NoEnvironment` with the reason, `BadRequirement`, which is also a ValueError, and `NotAvailable`.
    """

    def __init__(
        self,
        home: str | os.PathLike[str],
        *,
        wait: float = 60.0,
        retry: GivenRetry | None = None,
    ) -> None:
        """This opens nothing yet.

        Args:
            home: a separate folder; `~` is expanded, and a relative path is resolved now.
            wait: seconds to wait while another process has it open; only one process at a time can.
            retry: the default for `ensure`.

        Raises TypeError, ValueError.
        """
        if not isinstance(home, str | os.PathLike):
            raise TypeError(f"home must be a path, not {type(home).__name__}")
        if not os.fspath(home):
            raise ValueError("home must be a folder, not an empty string")
        if isinstance(wait, bool) or not isinstance(wait, int | float):
            raise TypeError(f"wait must be a number of seconds, not {type(wait).__name__}")
        if not wait >= 0:
            raise ValueError(f"wait must be 0 seconds or more, not {wait:g}")
        if retry is not None:
            given_policy(retry)
        self.home = expanded(home).absolute()
        """The folder."""
        self._wait = wait
        self._retry = retry
        self._shared = shared(self.home, self)

    # life

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> AsyncInstaller:
        from greenroom.runner.environments.async_installer import AsyncInstaller

        return await AsyncInstaller(self, self._shared, self._wait, self._retry).__aenter__()

    async def __aexit__(self, *_: object) -> None:
        from greenroom.actors.kernel.system import stop_in_thread

        await stop_in_thread(self.close)

    def close(self) -> None:
        """Close it, and cancel its jobs unless another installer of this process has the folder open, too.

        Idempotent; takes at most 30 seconds. Environments remain usable.
        """
        self._shared.close(self)

    # using

    def environments(self) -> list[InstalledEnvironment]:
        """The complete environments, sorted by name."""
        return self._open().environments()

    def remove(self, what: str | InstalledEnvironment) -> int:
        """Remove an environment, and return the bytes freed.

        `what` is an environment, its name, or a requirement, which removes all environments made for it;
        `black` includes those with versions. Programs still running from it lose their files.

        Raises NoEnvironment if there is none.
        """
        host = self._open()
        return sum(self._answer(host, Uninstall(backend=name)).freed for name in host.names(name_of(what)))

    def why(self, what: str | InstalledEnvironment) -> WhyResult:
        """Explain the state of an environment, with what happened to it according to the journal."""
        return self._open().why(name_of(what))

    # inside

    def _ensured(
        self, call: EnsureCall, stream: bool, progress: OnProgress | None
    ) -> InstalledEnvironment | EnsureStream:
        steps = EnsureStream(self._open, call)
        if stream:
            return steps
        with steps:
            for step in steps:
                if progress is not None:
                    progress(step)
            return steps.result()

    def _open(self) -> EnvironmentHost:
        until = time.monotonic() + self._wait
        while True:
            try:
                return self._shared.host()
            except HomeLocked as error:
                if time.monotonic() >= until:
                    raise still_locked(error, self.home, self._wait) from error
            time.sleep(POLL)

    def _answer(self, host: EnvironmentHost, command: Any) -> Any:
        try:
            return host.ask(command).get()
        except KernelError as error:
            raise failed(error, self.home, command.backend) from error

    def __repr__(self) -> str:
        return f"Installer({str(self.home)!r})"


def name_of(what: object) -> str:
    """Raises TypeError."""
    if isinstance(what, InstalledEnvironment):
        return what.name
    if not isinstance(what, str):
        raise TypeError(f"what must be an environment, its name or a requirement, not {type(what).__name__}")
    return what
