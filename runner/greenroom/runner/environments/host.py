"""The actor, its builder and its journal in one folder: the smallest host of the installer."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from greenroom.actors.graphics import Graphics
from greenroom.actors.installer.environments import EnvironmentInstaller
from greenroom.actors.installer.messages import INSTALLER, AwaitInspected, CancelInstall
from greenroom.actors.installer.state import InstallerState
from greenroom.actors.journal.port import JournalError, JournalFull
from greenroom.actors.journal.reader import read_journal
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.answers import Reply
from greenroom.actors.kernel.core import Address, Command
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.limits import complaint
from greenroom.actors.progress import ProgressBoard
from greenroom.actors.retry import RetryPolicy
from greenroom.actors.values import Installation
from greenroom.runner.backends.base import Environment, Platform
from greenroom.runner.client.errors import NotAvailable
from greenroom.runner.client.results import WhyResult
from greenroom.runner.daemon_lock import DaemonLock
from greenroom.runner.environments.declaration import Declaration
from greenroom.runner.environments.errors import FREE_SPACE, NoEnvironment, closed
from greenroom.runner.environments.installed import InstalledEnvironment, root_of
from greenroom.runner.home import HomeUnusable, prepare_home
from greenroom.runner.installations.builder import Builder
from greenroom.runner.installations.installed import folder_of
from greenroom.runner.installations.sources import redact
from greenroom.runner.installations.verification import Unclear, missing, read_record

_log = logging.getLogger(__name__)

R = TypeVar("R")

JOURNAL = "journal.db"
_FOLDERS = ("backends", "cache")
_INSPECTION = 120.0
"""The time limit of the first inspection of the disk, in seconds."""
_STOP = 10.0


class EnvironmentHost:
    """Started and stopped once. For any thread."""

    def __init__(self, home: Path, lock: DaemonLock) -> None:
        """Start it. `lock` is released when it stops, or if the start fails.

        Raises JournalError, KernelError, OSError.
        """
        self.home = home
        self.board = ProgressBoard()
        self._lock = lock
        self._declared: dict[str, Environment] = {}
        self._policies: dict[str, RetryPolicy] = {}
        self._builder: Builder | None = None
        self._system: ActorSystem | None = None
        try:
            journal = SqliteJournal(home / JOURNAL, lazy=True)
            for notice in journal.notices:
                _log.warning("%s", notice)
            self._system = ActorSystem(journal, redact=redact, explain=complaint)
            self._builder = Builder(
                home,
                self._tell,
                self.board,
                backends={},
                environments=self._declared,
                platform=Platform.here(Graphics()),
            )
            self._system.register(EnvironmentInstaller(self._policies), effect_handler=self._builder)
            self._system.start()
            self._system.ask(AwaitInspected()).get(timeout=_INSPECTION)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the jobs, then the actor. Idempotent; takes at most 30 seconds."""
        system, self._system = self._system, None
        if system is not None:
            with contextlib.suppress(KernelError):
                self._cancel_jobs(system)
            if self._builder is not None:
                self._builder.close()
            system.stop(_STOP)
        self._lock.release()

    # asking

    def ask(self, command: Command[R]) -> Reply[R]:
        """Raises KernelError, NotAvailable."""
        if self._system is None:
            raise closed(self.home)
        return self._system.ask(command)

    def tell(self, command: Command[object]) -> None:
        """Does nothing after the stop."""
        if self._system is not None:
            with contextlib.suppress(KernelError):
                self._system.tell(command)

    def declare(self, declaration: Declaration) -> None:
        """Declare what an environment is made of, before `ensure` is sent."""
        self._declared[declaration.name] = declaration.source
        if declaration.policy is None:
            self._policies.pop(declaration.name, None)
        else:
            self._policies[declaration.name] = declaration.policy

    # reading

    def found(self, installation: Installation, *, already: bool) -> InstalledEnvironment | None:
        """An environment according to its record; None if some of its files are gone."""
        folder = folder_of(self.home, installation)
        try:
            record = read_record(folder)
            if record is None or missing(folder, record):
                return None
        except (ValueError, Unclear):
            return None
        declared = self._state().of(installation.backend).declared
        return InstalledEnvironment(
            name=installation.backend,
            requirement=declared.requirement if declared is not None else installation.backend,
            version=record.version,
            python_version=record.python.version,
            root=root_of(folder),
            packages=tuple(
                sorted(f"{one.locked().project}=={one.locked().version}" for one in record.wheels)
            ),
            size=record.size,
            built_at=record.built_at,
            already=already,
        )

    def environments(self) -> list[InstalledEnvironment]:
        """The complete environments, sorted by name."""
        found = (
            self.found(backend.usable, already=True)
            for _, backend in sorted(self._state().backends.items())
            if backend.usable is not None
        )
        return [one for one in found if one is not None]

    def names(self, what: str) -> list[str]:
        """The environments that `what` refers to: by name, else all for this requirement or distribution.

        Raises NoEnvironment if none is or was installed.
        """
        backends, text = self._state().backends, what.replace(" ", "")
        if what in backends:
            return [what]
        requirements = {
            name: one.declared.requirement for name, one in backends.items() if one.declared is not None
        }
        if found := [name for name, one in requirements.items() if text in (one, _distribution(one))]:
            return found
        here = ", ".join(one.requirement for one in self.environments()) or "none"
        raise NoEnvironment(
            f"There is no environment {what!r} in {self.home}.",
            f"Installed: {here}.",
            code="not_installed",
            kind="not_found",
        )

    def why(self, what: str) -> WhyResult:
        """From the journal alone. Raises NoEnvironment, JournalError."""
        # Imported here, since it is large and rarely needed.
        from greenroom.runner.diagnosis.explain import explain

        name = self.names(what)[-1]
        found = explain(read_journal(self.home / JOURNAL), name, time.time())
        fields = msgspec.to_builtins(found)
        return msgspec.convert({**fields, "kind": "environment"}, WhyResult, strict=False)

    # inside

    def _state(self) -> InstallerState:
        if self._system is None:
            raise closed(self.home)
        state: InstallerState = self._system.state(INSTALLER)
        return state

    def _tell(self, to: Address, command: Command[object]) -> None:
        system = self._system
        if system is not None:
            system.report(command, to=to)

    def _cancel_jobs(self, system: ActorSystem) -> None:
        for command in _cancels(system.state(INSTALLER)):
            system.tell(command)


def _distribution(requirement: str) -> str:
    found = re.match(r"[a-z0-9-]+", requirement)
    return found[0] if found is not None else ""


def _cancels(state: InstallerState) -> Iterator[CancelInstall]:
    for name, backend in state.backends.items():
        for job in backend.jobs_open:
            yield CancelInstall(backend=name, job=job.id, reason="its installer was closed")


def opened(home: Path) -> EnvironmentHost:
    """Start the installer of a folder.

    Raises HomeLocked while another process has it open, and NotAvailable.
    """
    if os.path.isdir(home / "models"):
        raise NotAvailable(
            f"{home} is a Greenroom data directory, with backends and models.",
            "Give the installer a separate folder.",
            code="home_unusable",
            kind="invalid",
        )
    try:
        prepare_home(home, _FOLDERS)
        return EnvironmentHost(home, DaemonLock(home))
    except HomeUnusable as error:
        advice = error.advice.replace("Set GREENROOM_HOME to", "Give the installer")
        advice = advice.replace("set GREENROOM_HOME to", "give the installer")
        message = error.sentence.replace("The data directory", "The folder", 1)
        raise NotAvailable(message, advice, code="home_unusable", kind="not_ready") from error
    except JournalFull as error:
        message = f"The disk of {home} is full: {error}."
        raise NotAvailable(message, FREE_SPACE, code="no_space", kind="exhausted") from error
    except JournalError as error:
        message = f"The journal of {home} cannot be used: {error}."
        advice = "Move journal.db away: the installer finds its environments on the disk."
        raise NotAvailable(message, advice, code="journal_unusable") from error
    except (KernelError, TimeoutError) as error:
        raise NotAvailable(
            f"The installer of {home} could not be started: {error}.", code="not_started"
        ) from error
