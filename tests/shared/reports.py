"""What builder and puller report, in short."""

from __future__ import annotations

from greenroom.actors.installer.effects import BuildInstallation, RemoveInstallation
from greenroom.actors.installer.events import (
    InstallationCommitted,
    InstallationRemoved,
    InstallAttemptFailed,
    InstallCancelled,
)
from greenroom.actors.library.effects import AddTag, DeleteModel, StoreAgain
from greenroom.actors.library.events import (
    ModelCommitted,
    ModelRemoved,
    ModelTagged,
    PullAttemptFailed,
    PullCancelled,
)
from greenroom.actors.reports import EffectEnded, Happened
from greenroom.actors.values import Failure, Installation, Model


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


def pulled(job: str, model: Model, *, fresh: bool = True) -> Happened:
    return Happened(event=ModelCommitted(job=job, model=model, fresh=fresh))


def pull_failed(job: str, failure: Failure, *, reached: bool = True, moved: bool = False) -> Happened:
    """An attempt has failed, or was cancelled; `moved` says that it has brought something."""
    if failure.kind == "cancelled":
        return Happened(event=PullCancelled(job=job, reason=failure.message))
    failed = PullAttemptFailed(
        job=job, attempt=1, failure=failure, retry_at=0.0, streak=0 if moved else 1, reached=reached
    )
    return Happened(event=failed)


def tags_written(
    model_id: str, tag: str, tags: tuple[str, ...] = (), failure: Failure | None = None
) -> EffectEnded:
    effect = AddTag(model_id=model_id, tag=tag)
    if failure is not None:
        return EffectEnded(effect=effect, failure=failure)
    return EffectEnded(effect=effect, event=ModelTagged(model_id=model_id, tags=tags))


def repackaged(
    source_id: str, tag: str, model: Model | None = None, failure: Failure | None = None
) -> EffectEnded:
    effect = StoreAgain(model_id=source_id, tag=tag, context_size=None)
    event = None if model is None else ModelCommitted(job="", model=model)
    return EffectEnded(effect=effect, event=event, failure=failure)


def deleted(model_id: str, freed: int = 0, failure: Failure | None = None) -> EffectEnded:
    effect = DeleteModel(model_id=model_id)
    if failure is not None:
        return EffectEnded(effect=effect, failure=failure)
    event = ModelRemoved(model_id=model_id, reason="requested by the user", freed=freed)
    return EffectEnded(effect=effect, event=event)
