"""Effects of the installer, performed by the builder."""

from __future__ import annotations

from greenroom.actors.kernel.core import Effect


class BuildInstallation(Effect, frozen=True, kw_only=True):
    """Begin an attempt. Reports InstallationCommitted, InstallAttemptFailed or InstallCancelled."""

    job: str
    backend: str
    variant: str = ""
    version: str
    attempt: int
    repair: bool
    digest: str = ""
    """Of the packages that were resolved for this variant and version before: they must be the same."""


class CancelBuild(Effect, frozen=True, kw_only=True):
    """Cancel an attempt and remove what it left behind."""

    job: str


class InspectInstallations(Effect, frozen=True, kw_only=True):
    """Remove what has no commit mark, verify the rest. Reports InstallationsSeen or
    InstallationsUnread for each backend."""

    backends: tuple[str, ...]


class RemoveInstallation(Effect, frozen=True, kw_only=True):
    """Delete its files. Ends with InstallationRemoved."""

    backend: str
    installation_id: str


class PlanInstallation(Effect, frozen=True, kw_only=True):
    """Determine what would be fetched. Ends with a Plan."""

    backend: str
    variant: str = ""
    version: str


class PublishInstallProgress(Effect, frozen=True, kw_only=True):
    """Publish what a job waits for between attempts; without a phase, that it has ended."""

    backend: str
    phase: str = ""
    message: str = ""


class VerifyInstallations(Effect, frozen=True, kw_only=True):
    """Read every file of these installations. Ends with Verified."""

    backend: str
    installations: tuple[str, ...]


class DropUnneeded(Effect, frozen=True, kw_only=True):
    """Delete downloads that no installation needs. Ends with FetchedDropped."""
