"""What builder and puller report, in short."""

from __future__ import annotations

from greenroom.actors.installer.effects import BuildInstallation, RemoveInstallation
from greenroom.actors.installer.events import (
    InstallationCommitted,
    InstallationRemoved,
    InstallAttemptFailed,
    InstallCancelled,
)
from greenroom.actors.reports import EffectEnded, Happened
from greenroom.actors.values import Failure, Installation


def build(
    job: str, backend: str, *, version: str = "", attempt: int = 1, repair: bool = False
) -> BuildInstallation:
    return BuildInstallation(job=job, backend=backend, version=version, attempt=attempt, repair=repair)


def build_committed(job: str, made: Installation) -> Happened:
    return Happened(event=InstallationCommitted(job=job, backend=made.backend, installation=made))


def attempt_failed(job: str, failure: Failure, *, reached: bool = True) -> Happened:
    """An attempt of job `<backend>.<n>` has failed, or was cancelled."""
    backend = job.rpartition(".")[0]
    if failure.kind == "cancelled":
        return Happened(event=InstallCancelled(job=job, backend=backend, reason=failure.message))
    failed = InstallAttemptFailed(
        job=job, backend=backend, attempt=1, failure=failure, retry_at=0.0, reached=reached
    )
    return Happened(event=failed)


def removed(
    backend: str, installation_id: str, freed: int = 0, failure: Failure | None = None
) -> EffectEnded:
    effect = RemoveInstallation(backend=backend, installation_id=installation_id)
    if failure is not None:
        return EffectEnded(effect=effect, failure=failure)
    event = InstallationRemoved(backend=backend, installation_id=installation_id, freed=freed)
    return EffectEnded(effect=effect, event=event)
