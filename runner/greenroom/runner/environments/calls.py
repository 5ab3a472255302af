"""One call of `ensure` as a series of steps, none of which waits."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from greenroom.actors.installer.messages import (
    CancelInstall,
    Ensured,
    EnsureEnvironment,
    VerifyBackend,
)
from greenroom.actors.kernel.core import Command
from greenroom.actors.progress import install_job
from greenroom.actors.values import Progress
from greenroom.runner.client.errors import GreenroomError
from greenroom.runner.client.results import JobProgress
from greenroom.runner.environments.declaration import Declaration
from greenroom.runner.environments.errors import NoEnvironment
from greenroom.runner.environments.host import EnvironmentHost
from greenroom.runner.environments.installed import InstalledEnvironment
from greenroom.runner.systems.peer_processes import process_caller

OnProgress = Callable[[JobProgress], object]
Step = Command[Any] | Callable[[], Any]
"""A command to ask, or a function that reads the disk."""
_TRIES = 3


class EnsureCall:
    """`steps` yields what to do next, and is sent the result."""

    def __init__(self, declaration: Declaration, *, latest: bool) -> None:
        self.job = install_job(declaration.name)
        self.requirement = declaration.fact.requirement
        self._declaration = declaration
        self._ask = EnsureEnvironment(
            backend=declaration.name,
            version="latest" if latest else "",
            wanted_by="request",
            declared=declaration.fact,
            caller=process_caller(os.getpid()),
            waiter=uuid.uuid4().hex,
        )

    def steps(self, host: EnvironmentHost) -> Generator[Step, Any, InstalledEnvironment]:
        """Raises NoEnvironment."""
        host.declare(self._declaration)
        for _ in range(_TRIES):
            ensured: Ensured = yield self._ask
            found: InstalledEnvironment | None = yield partial(
                host.found, ensured.installation, already=not ensured.fresh
            )
            if found is not None:
                return found
            # It was complete when this process started: a full check now finds it broken, and it is rebuilt.
            yield VerifyBackend(backend=self._declaration.name)
        raise NoEnvironment(
            f"{self.requirement} was installed, but its files are gone or have changed {_TRIES} times.",
            f"Find out which program changes files in {host.home}.",
            code="broken",
            kind="unavailable",
        )

    def leave(self, host: EnvironmentHost) -> None:
        """This caller no longer waits; if no other does, the job is cancelled."""
        ask = self._ask
        host.tell(
            CancelInstall(
                backend=ask.backend,
                version=ask.version,
                reason="no one waits for it any more",
                leave=True,
                waiter=ask.waiter,
            )
        )


def told(progress: Progress) -> JobProgress:
    return JobProgress(
        message=progress.message,
        phase=progress.phase,
        done=progress.done,
        total=progress.total,
        rate=progress.rate,
    )


def unfinished() -> GreenroomError:
    """The result of a closed stream was asked for."""
    return NoEnvironment(
        "The stream was closed before the environment was ready.", code="cancelled", kind="conflict"
    )
