"""The methods that the installers for threads and for asyncio share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, overload

from greenroom.runner.environments.calls import EnsureCall, OnProgress
from greenroom.runner.environments.declaration import declaration_of

if TYPE_CHECKING:
    from greenroom.actors.retry import GivenRetry

Installed = TypeVar("Installed")
Installing = TypeVar("Installing")


class EnvironmentRequests(ABC, Generic[Installed, Installing]):
    """The types are those of an environment that is there, and of a stream."""

    _retry: GivenRetry | None = None

    @overload
    def ensure(
        self,
        requirement: str,
        *,
        stream: Literal[False] = False,
        progress: OnProgress | None = None,
        python: str | os.PathLike[str] | None = None,
        index: str | Sequence[str] | None = None,
        lock: str | os.PathLike[str] | None = None,
        retry: GivenRetry | None = None,
        latest: bool = False,
    ) -> Installed: ...
    @overload
    def ensure(
        self,
        requirement: str,
        *,
        stream: Literal[True],
        python: str | os.PathLike[str] | None = None,
        index: str | Sequence[str] | None = None,
        lock: str | os.PathLike[str] | None = None,
        retry: GivenRetry | None = None,
        latest: bool = False,
    ) -> Installing: ...
    def ensure(
        self,
        requirement: str,
        *,
        stream: bool = False,
        progress: OnProgress | None = None,
        python: str | os.PathLike[str] | None = None,
        index: str | Sequence[str] | None = None,
        lock: str | os.PathLike[str] | None = None,
        retry: GivenRetry | None = None,
        latest: bool = False,
    ) -> Installed | Installing:
        """Return an environment with this requirement, which is installed unless it is complete on the disk.

        Each combination of versions, Python, index and lock has its own environment; environments share the
        files they have in common. Callers that want the same environment share the work.

        Args:
            requirement: `black`, `black>=26,<27`, `black[d]`; with a lock, only a name.
            stream: return an iterator over the progress; its `result()` is the environment.
            progress: called with each step, in this thread or on the event loop; `print` works.
            python: a version (`"3.12"`) or the path of a Python on this machine; by default this program's.
            index: the only index, or indexes, to use; by default those of pip's and uv's settings.
            lock: a requirements file with hashes, or a `pylock.toml`: only its files are installed.
            retry: a `tenacity.Retrying` or a Tenacity stop condition: when to retry a failed attempt. By
                default there are five attempts, unless a retry would fail the same way.
            latest: look for newer packages even if it is installed; nothing is built if there are none.
        """
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be a function, not {type(progress).__name__}")
        chosen = self._retry if retry is None else retry
        declaration = declaration_of(requirement, python, index, lock, chosen)
        return self._ensured(EnsureCall(declaration, latest=bool(latest)), stream, progress)

    @abstractmethod
    def _ensured(
        self, call: EnsureCall, stream: bool, progress: OnProgress | None
    ) -> Installed | Installing: ...
