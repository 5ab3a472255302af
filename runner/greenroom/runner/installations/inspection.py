"""What installations there are: found on the disk, or named by the user, and whether each can be used."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from greenroom.actors.installer.events import InstallationsUnread
from greenroom.actors.installer.messages import INSTALLER, InstallationsSeen
from greenroom.actors.reports import Happened, TellActor
from greenroom.actors.values import Installation
from greenroom.runner.backends.base import Backend, Environment
from greenroom.runner.installations import external
from greenroom.runner.installations.installed import InstallationStore, no_exec
from greenroom.runner.installations.lock_file import normalized
from greenroom.runner.setting_values import ExternalBackend

_log = logging.getLogger(__name__)

_REASON = 400


class Inspection:
    """Looks at the installations of one data directory, and reports them. Blocks."""

    def __init__(
        self,
        home: Path,
        tell: TellActor,
        backends: Mapping[str, Backend],
        named: Mapping[str, ExternalBackend],
    ) -> None:
        """`named` are the user's own installations, by backend."""
        self._home = home
        self._tell = tell
        self._backends = backends
        self._named = named
        self._logged: set[tuple[str, str, str]] = set()
        """What could not be judged is logged once."""

    def report(
        self, installed: InstallationStore, names: tuple[str, ...], building: tuple[tuple[str, int], ...]
    ) -> None:
        """What is there of each backend. `building` are jobs and their attempts, from before the look."""
        for name in names:
            try:
                found, unclear = self._there(installed, name)
            except OSError as error:
                _log.warning("the installations of %s cannot be read: %s", name, error)
                self._tell_unread(name, error.strerror or str(error))
            except Exception as error:  # noqa: BLE001 - it must cost no other backend, nor what is there
                _log.exception("the installations of %s could not be looked at", name)
                self._tell_unread(name, f"Greenroom failed to check it ({error!r})"[:_REASON])
            else:
                for one, reason in unclear.items():
                    if (name, one, reason) not in self._logged:
                        self._logged.add((name, one, reason))
                        _log.warning(
                            "%s of %s could not be checked and keeps its state: %s", one, name, reason
                        )
                seen = InstallationsSeen(
                    backend=name, installations=tuple(found), building=building, unclear=unclear
                )
                self._tell(INSTALLER, seen)

    def _tell_unread(self, backend: str, reason: str) -> None:
        self._tell(INSTALLER, Happened(event=InstallationsUnread(backend=backend, reason=reason)))

    def _there(self, installed: InstallationStore, name: str) -> tuple[list[Installation], Mapping[str, str]]:
        declared = self._backends.get(name)
        if sentence := no_exec(self._home):
            raise OSError(errno.EACCES, sentence)
        judged, unclear = installed.judged(name)
        found = list(judged)
        if declared is not None and isinstance(declared.source, Environment):
            found = [_fitting(one, declared.source, installed) for one in found]
        if (theirs := self.theirs(name)) is not None:
            found.append(theirs)
        return found, unclear

    def theirs(self, name: str) -> Installation | None:
        """The installation that the user has named in the config, checked."""
        named, declared = self._named.get(name), self._backends.get(name)
        if named is None or declared is None:
            return None
        if named.binary is not None:
            return external.binary(declared, named.binary)
        return external.environment(declared, named.python) if named.python is not None else None


def _fitting(one: Installation, source: Environment, installed: InstallationStore) -> Installation:
    """Broken when it was made for other processors: a machine may gain a GPU, or lose its driver."""
    if one.broken or one.variant:
        return one
    projects = {wheel.locked().project for wheel in installed.record(one).wheels}
    if not projects or normalized(source.distribution) in projects:
        return one
    return msgspec.structs.replace(
        one, broken=f"it was made for a machine with other processors; this one needs {source.distribution}"
    )
