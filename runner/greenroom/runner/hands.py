"""The actors' hands: what carries out their effects, and reports back with commands.

Each begins and returns; the work is done on threads of the builder, the engine host and the puller.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

import msgspec

from greenroom.actors.addresses import LIBRARY
from greenroom.actors.gates import GateBoard
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
from greenroom.actors.progress import ProgressBoard, pull_job, push_job, request_job
from greenroom.actors.scheduler.effects import (
    AdmitRequest,
    CloseGate,
    HoldGates,
    LeaveGate,
    OpenGate,
    PublishRequestProgress,
    RemoveGates,
)
from greenroom.actors.values import Failure, Model, Progress
from greenroom.runner.errors import not_begun
from greenroom.runner.models.puller import Puller

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


def _renamed(progress: Progress, key: str) -> Progress:
    return msgspec.structs.replace(progress, job=key)
