"""The actors' hands: what carries out their effects, and reports back with commands.

Each begins and returns; the work is done on threads of the builder, the engine host and the puller.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from greenroom.actors.addresses import INSTALLER, LIBRARY
from greenroom.actors.gates import GateBoard
from greenroom.actors.installer.effects import (
    BuildInstallation,
    CancelBuild,
    InspectInstallations,
    PlanInstallation,
    PublishInstallProgress,
    RemoveInstallation,
)
from greenroom.actors.installer.messages import (
    BackendVerified,
    DropUnneeded,
    FetchedDropped,
    InstallationGone,
    InstallationsSeen,
    InstallationsUnread,
    InstallAttemptEnded,
    InstallCommitted,
    PlanMade,
    VerifyInstallations,
)
from greenroom.actors.kernel.core import Address, Command, Effect
from greenroom.actors.library.effects import (
    AddTag,
    CancelFetch,
    CancelSend,
    DeleteModel,
    FetchModel,
    InspectModels,
    PublishPullProgress,
    RemoveTag,
    SendModel,
    StoreAgain,
    SweepStore,
)
from greenroom.actors.library.messages import (
    ModelGone,
    ModelRepackaged,
    ModelsSeen,
    PullAttemptEnded,
    PullCommitted,
    PushEnded,
    StoreSwept,
    TagsWritten,
)
from greenroom.actors.progress import ProgressBoard, install_job, pull_job, push_job, request_job
from greenroom.actors.scheduler.effects import (
    AdmitRequest,
    CloseGate,
    HoldGates,
    LeaveGate,
    OpenGate,
    PublishRequestProgress,
    RemoveGates,
)
from greenroom.actors.values import Failure, Installation, Model, Progress
from greenroom.runner.errors import JobFailed, not_begun
from greenroom.runner.installations.builder import Builder
from greenroom.runner.models.puller import Puller
from greenroom.runner.threads import start_thread

_log = logging.getLogger(__name__)

TellActor = Callable[[Address, Command], None]
"""Sends a command; must not raise when the system is stopping."""

_CANCELLED = Failure(kind="cancelled", code="cancelled", message="cancelled")


class _Hands(ABC):
    """What handlers of effects that take time share: one that cannot be begun is reported as failed."""

    def perform(self, effect: Effect, cause: str) -> None:
        """Begin, and return at once. Raises only when there is nobody to report a failure to."""
        try:
            self._begin(effect, cause)
        except Exception as error:
            if not self._could_not(effect, error):
                raise
            _log.exception("%s (caused by %s) could not be started", type(effect).__name__, cause)

    @abstractmethod
    def _begin(self, effect: Effect, cause: str) -> None:
        """Begin what the effect asks for."""

    @abstractmethod
    def _could_not(self, effect: Effect, error: Exception) -> bool:
        """Report that it could not be begun; False when no job waits for it."""


class InstallerHands(_Hands):
    """Builds, looks at and removes installations; hears the builder."""

    def __init__(self, tell: TellActor, board: ProgressBoard) -> None:
        self._tell = tell
        self._board = board
        self.builder: Builder | None = None
        """Set once, before the system starts: the builder needs us as its listener."""

    def _could_not(self, effect: Effect, error: Exception) -> bool:
        failure = not_begun(error)
        report: Command
        match effect:
            case BuildInstallation(job=job):
                self._ended(job, failure)
                return True
            case RemoveInstallation(backend=backend, installation_id=one):
                report = InstallationGone(backend=backend, installation_id=one, failure=failure)
            case VerifyInstallations(backend=backend):
                report = BackendVerified(backend=backend, failure=failure)
            case DropUnneeded():
                report = FetchedDropped(failure=failure)
            case PlanInstallation(backend=backend, version=version):
                report = PlanMade(backend=backend, version=version, failure=failure)
            case _:
                return False
        self._tell(INSTALLER, report)
        return True

    def _begin(self, effect: Effect, cause: str) -> None:
        builder = self.builder
        assert builder is not None
        match effect:
            case BuildInstallation() as e:
                self._board.clear(install_job(e.backend))
                builder.start(e.job, e.backend, version=e.version, attempt=e.attempt, repair=e.repair)
            case CancelBuild(job=job):
                builder.cancel(job)
            case PublishInstallProgress(backend=backend, phase=""):
                self._board.clear(install_job(backend))
            case PublishInstallProgress(backend=backend, phase=phase, message=message):
                self._board.publish(Progress(job=install_job(backend), phase=phase, message=message))
            case InspectInstallations(backends=backends):
                builder.look(backends)
            case RemoveInstallation(backend=backend, installation_id=one):
                builder.remove(backend, one)
            case VerifyInstallations(backend=backend, installations=those):
                start_thread(partial(self._verify, builder, backend, those), "verify")
            case DropUnneeded():
                start_thread(partial(self._drop, builder), "prune")
            case PlanInstallation(backend=backend, version=version):
                start_thread(partial(self._plan, builder, backend, version), "plan")
            case _:
                raise TypeError(f"the installer's hands do not know {type(effect).__name__} ({cause})")

    def _plan(self, builder: Builder, backend: str, version: str) -> None:
        try:
            plan = builder.plan(backend, version)
        except JobFailed as failed:
            made = PlanMade(backend=backend, version=version, failure=failed.failure)
        except Exception as error:  # noqa: BLE001 - whatever it is, the asker must hear of it
            _log.exception("planning %s failed", backend)
            failure = Failure(kind="permanent", code="fault", message=f"Planning failed: {error!r}.")
            made = PlanMade(backend=backend, version=version, failure=failure)
        else:
            made = PlanMade(backend=backend, version=version, plan=plan)
        self._tell(INSTALLER, made)

    def _drop(self, builder: Builder) -> None:
        try:
            report = FetchedDropped(freed=builder.drop_fetched())
        except Exception as error:  # noqa: BLE001 - whatever it is, the asker must hear of it
            _log.exception("dropping what was fetched failed")
            failure = Failure(kind="permanent", code="fault", message=f"Pruning failed: {error!r}.")
            report = FetchedDropped(failure=failure)
        self._tell(INSTALLER, report)

    def _verify(self, builder: Builder, backend: str, installations: tuple[str, ...]) -> None:
        try:
            damaged = {one: tuple(builder.verify(backend, one)) for one in installations}
        except JobFailed as failed:
            report = BackendVerified(backend=backend, failure=failed.failure)
        except Exception as error:  # noqa: BLE001 - whatever it is, the asker must hear of it
            _log.exception("verifying %s failed", backend)
            failure = Failure(kind="permanent", code="fault", message=f"Verifying failed: {error!r}.")
            report = BackendVerified(backend=backend, failure=failure)
        else:
            found = {one: complaints for one, complaints in damaged.items() if complaints}
            report = BackendVerified(backend=backend, checked=installations, damaged=found)
        self._tell(INSTALLER, report)

    # BuilderListener

    def progress(self, progress: Progress) -> None:
        """On the board under the backend's key: whoever waits knows the backend, not the job."""
        key = install_job(_backend_of(progress.job))
        self._board.publish(_renamed(progress, key))

    def committed(self, job_id: str, installation: Installation) -> None:
        """An attempt has succeeded."""
        self._board.clear(install_job(installation.backend))
        self._tell(INSTALLER, InstallCommitted(job=job_id, installation=installation))

    def failed(self, job_id: str, failure: Failure, *, reached: bool = True) -> None:
        """An attempt has failed."""
        self._ended(job_id, failure, reached=reached)

    def cancelled(self, job_id: str) -> None:
        """An attempt was ended."""
        self._ended(job_id, _CANCELLED)

    def _ended(self, job_id: str, failure: Failure, *, reached: bool = True) -> None:
        backend = _backend_of(job_id)
        self._board.clear(install_job(backend))
        ended = InstallAttemptEnded(job=job_id, backend=backend, failure=failure, reached=reached)
        self._tell(INSTALLER, ended)

    def seen(
        self,
        backend: str,
        installations: tuple[Installation, ...],
        building: tuple[tuple[str, int], ...],
        unclear: Mapping[str, str],
    ) -> None:
        """What lies on disk, and what is being built."""
        seen = InstallationsSeen(
            backend=backend, installations=installations, building=building, unclear=unclear
        )
        self._tell(INSTALLER, seen)

    def unread(self, backend: str, reason: str) -> None:
        """What lies on disk cannot be read now."""
        self._tell(INSTALLER, InstallationsUnread(backend=backend, reason=reason))

    def removed(self, backend: str, installation_id: str, freed_bytes: int) -> None:
        """Its files are gone."""
        self._tell(
            INSTALLER,
            InstallationGone(backend=backend, installation_id=installation_id, freed=freed_bytes),
        )

    def remove_failed(self, backend: str, installation_id: str, failure: Failure) -> None:
        """Its files are not gone."""
        self._tell(
            INSTALLER,
            InstallationGone(backend=backend, installation_id=installation_id, failure=failure),
        )


class LibraryHands(_Hands):
    """Pulls models and changes the store; hears the puller."""

    def __init__(self, tell: TellActor, board: ProgressBoard) -> None:
        self._tell = tell
        self._board = board
        self._references: dict[str, str] = {}
        self.puller: Puller | None = None
        """Set once, before the system starts: the puller needs us as its listener."""

    def _could_not(self, effect: Effect, error: Exception) -> bool:
        failure = not_begun(error)
        match effect:
            case FetchModel(job=job):
                self.failed(job, failure, reached=False, moved=0)
            case DeleteModel(model_id=one):
                self.remove_failed(one, failure)
            case AddTag(model_id=one, tag=tag) | RemoveTag(model_id=one, tag=tag):
                self.tag_failed(one, tag, failure)
            case StoreAgain(model_id=one, tag=tag):
                self.repackage_failed(one, tag, failure)
            case SweepStore():
                self.prune_failed(failure)
            case SendModel(model_id=one, reference=reference):
                self.push_failed(reference, one, failure)
            case _:
                return False
        return True

    def _begin(self, effect: Effect, cause: str) -> None:
        puller = self.puller
        assert puller is not None
        match effect:
            case FetchModel() as e:
                self._references[e.job] = e.reference
                puller.start(e.job, e.reference, token=e.token, force=e.force)
            case CancelFetch(job=job):
                # Nothing is told of it any more, however long it takes to end.
                self._end(job)
                puller.cancel(job)
            case PublishPullProgress() as e:
                self._inform(e)
            case InspectModels():
                puller.look()
            case DeleteModel(model_id=one):
                puller.remove(one)
            case AddTag(model_id=one, tag=tag):
                puller.tag(one, tag)
            case RemoveTag(model_id=one, tag=tag):
                puller.untag(one, tag)
            case StoreAgain() as e:
                puller.repackage(e.model_id, e.tag, e.context_size)
            case SweepStore():
                puller.prune()
            case SendModel() as e:
                puller.push(e.model_id, e.reference, token=e.token)
            case CancelSend(reference=reference):
                puller.cancel_push(reference)
            case _:
                raise TypeError(f"the library's hands do not know {type(effect).__name__} ({cause})")

    def _inform(self, inform: PublishPullProgress) -> None:
        """Between two attempts the pull has a line of its own; an attempt that runs speaks for itself."""
        key = pull_job(inform.reference)
        if inform.phase:
            self._board.publish(Progress(job=key, phase=inform.phase, message=inform.message))
        elif inform.reference not in self._references.values():
            self._board.clear(key)

    # PullerListener

    def progress(self, progress: Progress) -> None:
        """On the board under the reference's key; of a push under its own."""
        reference = self._references.get(progress.job)
        if reference is not None:
            self._board.publish(_renamed(progress, pull_job(reference)))
        elif progress.job.startswith("push/"):
            self._board.publish(progress)

    def committed(self, job_id: str, model: Model, *, fresh: bool) -> None:
        """The model is in the store."""
        self._end(job_id)
        self._tell(LIBRARY, PullCommitted(job=job_id, model=model, fresh=fresh))

    def failed(self, job_id: str, failure: Failure, *, reached: bool, moved: int) -> None:
        """An attempt has failed."""
        self._end(job_id)
        ended = PullAttemptEnded(job=job_id, failure=failure, reached=reached, moved=moved)
        self._tell(LIBRARY, ended)

    def cancelled(self, job_id: str) -> None:
        """An attempt was ended."""
        self._end(job_id)
        self._tell(LIBRARY, PullAttemptEnded(job=job_id, failure=_CANCELLED))

    def _end(self, job_id: str) -> None:
        reference = self._references.pop(job_id, None)
        if reference is not None:
            self._board.clear(pull_job(reference))

    def seen(self, models: tuple[Model, ...], running: tuple[str, ...], *, recovered: bool) -> None:
        """What lies in the store, and which pulls are under way."""
        self._tell(LIBRARY, ModelsSeen(models=models, running=running, recovered=recovered))

    def look_failed(self, failure: Failure) -> None:
        """The store cannot be read: nothing in it can be served, and everything else goes on."""
        _log.error("the model store cannot be read: %s %s", failure.sentence(), failure.detail)
        self._tell(LIBRARY, ModelsSeen(models=(), failure=failure))

    def removed(self, model_id: str, freed: int) -> None:
        """A model is gone."""
        self._tell(LIBRARY, ModelGone(model_id=model_id, freed=freed))

    def remove_failed(self, model_id: str, failure: Failure) -> None:
        """A model is not gone."""
        self._tell(LIBRARY, ModelGone(model_id=model_id, failure=failure))

    def tagged(self, model_id: str, tag: str, tags: tuple[str, ...]) -> None:
        """The store has these tags for a model."""
        self._tell(LIBRARY, TagsWritten(model_id=model_id, tag=tag, tags=tags))

    def tag_failed(self, model_id: str, tag: str, failure: Failure) -> None:
        """The store's tags are as they were."""
        self._tell(LIBRARY, TagsWritten(model_id=model_id, tag=tag, tags=(), failure=failure))

    def repackaged(self, source_id: str, tag: str, model: Model) -> None:
        """A model is in the store with another configuration."""
        self._tell(LIBRARY, ModelRepackaged(source_id=source_id, tag=tag, model=model))

    def repackage_failed(self, source_id: str, tag: str, failure: Failure) -> None:
        """It is not."""
        self._tell(LIBRARY, ModelRepackaged(source_id=source_id, tag=tag, failure=failure))

    def pruned(self, freed: int) -> None:
        """What no model needs is gone."""
        self._tell(LIBRARY, StoreSwept(freed=freed))

    def prune_failed(self, failure: Failure) -> None:
        """It is not."""
        self._tell(LIBRARY, StoreSwept(failure=failure))

    def pushed(self, reference: str, model_id: str, sent: int, seconds: float) -> None:
        """A model is published."""
        self._board.clear(push_job(reference))
        report = PushEnded(reference=reference, model_id=model_id, sent=sent, seconds=seconds)
        self._tell(LIBRARY, report)

    def push_failed(self, reference: str, model_id: str, failure: Failure) -> None:
        """It is not."""
        self._board.clear(push_job(reference))
        self._tell(LIBRARY, PushEnded(reference=reference, model_id=model_id, failure=failure))


class SchedulerHands:
    """Opens and closes gates, puts granted requests inside, and tells waiting ones what goes on."""

    def __init__(self, gates: GateBoard, board: ProgressBoard) -> None:
        self._gates = gates
        self._board = board

    def perform(self, effect: Effect, cause: str) -> None:
        """Done at once: nothing here waits."""
        match effect:
            case OpenGate() as e:
                self._gates.open(e.engine_id, e.model_id, e.mode, e.backend, e.endpoint, e.slots)
            case HoldGates(engine_ids=held):
                self._gates.hold(held)
            case CloseGate(engine_id=one):
                self._gates.close(one)
            case RemoveGates(keep=keep):
                self._gates.keep(keep)
            case AdmitRequest(engine_id=one, request_id=request) as e:
                self._gates.reserve(one, request, e.caller, e.places)
                self._board.clear(request_job(request))
            case LeaveGate(request_id=request):
                self._gates.leave(request)
                self._board.clear(request_job(request))
            case PublishRequestProgress() as e:
                self._board.publish(
                    Progress(
                        job=request_job(e.request_id),
                        phase=e.phase,
                        message=e.message,
                        follows=e.follows,
                        place=e.place,
                    )
                )
            case _:
                raise TypeError(f"the scheduler's hands do not know {type(effect).__name__} ({cause})")


def _backend_of(job: str) -> str:
    """Install jobs are called `<backend>.<n>`."""
    return job.rpartition(".")[0]


def _renamed(progress: Progress, key: str) -> Progress:
    return msgspec.structs.replace(progress, job=key)
