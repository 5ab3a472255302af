"""What the installer is asked and told about the versions of a backend that lie side by side."""

from __future__ import annotations

from collections.abc import Mapping

from greenroom.actors.facts import Failure
from greenroom.actors.kernel.core import Command, Effect


class Activate(Command, frozen=True, kw_only=True):
    """Bring another installation that is here into use: `Ensured`. Nothing is fetched or built."""

    backend: str
    version: str = ""
    """Empty means the one that was in use before the current one."""


class VerifyBackend(Command, frozen=True, kw_only=True):
    """Read every file of a backend's installations: `Verified`. What is damaged is broken from then on."""

    backend: str


class Verified(Command, frozen=True, kw_only=True):
    """What was read."""

    backend: str
    checked: tuple[str, ...]
    """Ids of the installations that were read."""
    damaged: Mapping[str, tuple[str, ...]]
    """installation → each file that is not what was installed, as a sentence."""


class BackendVerified(Command, frozen=True, kw_only=True):
    """Report: a backend's installations were read, or could not be."""

    backend: str
    checked: tuple[str, ...] = ()
    damaged: Mapping[str, tuple[str, ...]] = {}
    failure: Failure | None = None


class VerifyInstallations(Effect, frozen=True, kw_only=True):
    """Read every file of these. Reports BackendVerified."""

    backend: str
    installations: tuple[str, ...]


class DropFetched(Command, frozen=True, kw_only=True):
    """Drop what was fetched for installations that did not come about: `FetchedDropped`."""


class FetchedDropped(Command, frozen=True, kw_only=True):
    """What became of that; of the hands it is a report."""

    freed: int = 0
    """Bytes of the disk."""
    kept_for: tuple[str, ...] = ()
    """Backends that are being installed: until that ends all that was fetched stays."""
    failure: Failure | None = None


class DropUnneeded(Effect, frozen=True, kw_only=True):
    """Drop what no installation needs of what was fetched. Reports FetchedDropped."""
