"""Carries out the library's effects: pulls on threads of their own, changes of the store one after another.

It decides nothing and keeps nothing. A pull is one attempt; whether there is another is up to the library.
Each ends with exactly one of `ModelCommitted`, `PullAttemptFailed` and `PullCancelled`.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from greenroom.actors.kernel.core import Command, Effect
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
from greenroom.actors.library.events import (
    ModelCommitted,
    ModelRemoved,
    ModelTagged,
    PullAttemptFailed,
    PullCancelled,
)
from greenroom.actors.library.messages import LIBRARY, ModelsSeen, Pruned
from greenroom.actors.progress import TICK, ProgressBoard, ProgressReport, pull_job
from greenroom.actors.reports import EffectEnded, Happened, TellActor
from greenroom.actors.values import Failure, Model, Progress
from greenroom.runner.errors import JobCancelled, JobFailed, not_begun
from greenroom.runner.models.errors import TOO_SLOW, check_pin, failure_of, name_taken
from greenroom.runner.models.preflight import Machine, check_disk, check_machine
from greenroom.runner.models.pusher import Pusher
from greenroom.runner.models.recipe import Recipe
from greenroom.runner.models.references import Reference
from greenroom.runner.models.short_names import Catalogue
from greenroom.runner.models.sources import source_for
from greenroom.runner.models.sources.base import Offer, Pins, Source, SourceContext
from greenroom.runner.models.sources.oci import OciSource
from greenroom.runner.models.store import ModelStore
from greenroom.runner.setting_values import RegistrySettings
from greenroom.runner.systems.disk_room import RESERVE
from greenroom.runner.threads import PATIENCE, Cancel, Crew, JobEnding, repeating, start_thread

if TYPE_CHECKING:
    from greenroom.runner.installations.sources import PackageSources

log = logging.getLogger(__name__)

PULLS_AT_ONCE = 2


_Change = DeleteModel | AddTag | RemoveTag | StoreAgain | SweepStore


@dataclass(frozen=True)
class Published:
    offer: Offer
    id: str = ""
    """Empty where models get their ids only when they arrive."""
    config: bytes = b""
    """As it was published; empty where there is none."""


class _Attempt(ProgressReport):
    """The progress of one attempt at a pull."""

    reached = False
    """The source has listed what it has."""
    blobs: tuple[tuple[str, int], ...] = ()
    """Digests and sizes of what must be fetched."""
    had = 0
    """Bytes of these that were present at the start."""


class Puller:
    """Pulls models and changes the store. Thread-safe; nothing blocks but `look_up` and `close`."""

    def __init__(
        self,
        store: ModelStore,
        tell: TellActor,
        board: ProgressBoard,
        *,
        catalogue: Catalogue | None = None,
        packages: PackageSources | None = None,
        registries: Mapping[str, RegistrySettings] | None = None,
        machine: Callable[[], Machine] = Machine,
        forget: Callable[[str], object] = lambda _: None,
        at_once: int = PULLS_AT_ONCE,
        patience: float = PATIENCE,
    ) -> None:
        """Begin nothing yet.

        Args:
            machine: What models have to fit; asked again for each pull.
            forget: Removes what else is kept of a removed model, by its id.
            patience: Seconds that what is cancelled has to end by itself.
        """
        self._store = store
        self._tell = tell
        self._board = board
        self._catalogue = catalogue or Catalogue.load()
        self._packages = packages
        self._registries = registries or {}
        self._machine = machine
        self._forget = forget
        self._pulls = Crew(at_once, "pull", patience=patience)
        self._changes = Crew(1, "store", patience=patience)
        self._change_numbers = itertools.count()
        self._lock = threading.Lock()
        self._attempts: dict[str, _Attempt] = {}
        self._shown: dict[str, str] = {}
        """job → reference of the attempts whose progress is on the board."""
        self._pusher = Pusher(store, tell, board, packages=packages, registries=registries, patience=patience)

    def perform(self, effect: Effect, cause: str) -> None:
        """Begin one effect. Raises where no report would say that it could not be begun."""
        try:
            self._begin(effect, cause)
        except Exception as error:
            failure = not_begun(error)
            if isinstance(effect, FetchModel):
                self._end(_failed(effect, failure, reached=False))
            elif isinstance(effect, SendModel):
                self._pusher.fail(effect, failure)
            elif isinstance(effect, _Change):
                self._tell(LIBRARY, EffectEnded(effect=effect, failure=failure))
            else:
                raise
            log.exception("%s (caused by %s) could not be started", type(effect).__name__, cause)

    def _begin(self, effect: Effect, cause: str) -> None:
        match effect:
            case FetchModel():
                self._start(effect)
            case CancelFetch(job=job):
                # Its progress is not shown any more, however long it takes to end.
                self._hide(job)
                self._pulls.cancel(job)
            case PublishPullProgress(reference=reference, phase=""):
                # A running attempt reports its own progress.
                if reference not in self._shown.values():
                    self._board.clear(pull_job(reference))
            case PublishPullProgress(reference=reference, phase=phase, message=message):
                self._board.publish(Progress(job=pull_job(reference), phase=phase, message=message))
            case InspectModels() | DeleteModel() | AddTag() | RemoveTag() | StoreAgain() | SweepStore():
                self._change(effect, cause)
            case SendModel():
                self._pusher.start(effect)
            case CancelSend(reference=reference):
                self._pusher.cancel(reference)
            case _:
                raise TypeError(f"the puller does not perform {type(effect).__name__} ({cause})")

    def _start(self, fetch: FetchModel) -> None:
        """Begin an attempt. A job that is running already is left alone."""
        self._shown[fetch.job] = fetch.reference
        waiting = Progress(
            job=pull_job(fetch.reference), phase="waiting", message="Waiting for other pulls to end"
        )
        self._pulls.start(
            fetch.job,
            partial(self._run, fetch),
            lambda: self._end(PullCancelled(job=fetch.job, reason="cancelled")),
            # Published before it can begin, so that it never comes after the job's own progress.
            lambda: self._publish(fetch.job, waiting),
        )

    def look_up(self, text: str, cancel: Cancel, *, token: str = "") -> Published:
        """What a source has under a name, without fetching it. Blocks.

        Raises:
            JobFailed: it is not there, or the source does not answer.
            BadReference: no name.
            JobCancelled: `cancel` was set.
        """
        reference, context = self._source_of(Reference.parse(text), token, cancel)
        source = source_for(reference, context)
        offer = source.measure(source.describe(reference, cancel), cancel)
        if isinstance(source, OciSource):
            model_id, config = source.published()
            return Published(offer, model_id, config)
        return Published(offer)

    def close(self) -> None:
        """Cancel all pulls and pushes, wait a bounded time for their end, and begin nothing any more."""
        crews = (self._pulls, self._changes, self._pusher)
        # Side by side: they share one bound.
        closing = [start_thread(crew.close, "close") for crew in crews]
        for thread in closing:
            thread.join()

    def _run(self, fetch: FetchModel, cancel: Cancel) -> JobEnding:
        attempt = _Attempt(pull_job(fetch.reference), partial(self._publish, fetch.job))
        with self._lock:
            self._attempts[fetch.job] = attempt
        try:
            with cancel.ends(attempt.end), repeating(attempt.tick, TICK, "progress"):
                reference = Reference.parse(fetch.reference)
                model, fresh = self._pull(reference, fetch, attempt, cancel)
        except JobCancelled:
            return JobEnding(lambda: self._end(PullCancelled(job=fetch.job, reason="cancelled")))
        except Exception as error:  # noqa: BLE001 - a pull that ends without a word would hang its job
            failure = failure_of(error, "pulling the model")
            # What a server that trickles has sent is kept, but is no reason to wait for it forever.
            moved = failure.code != TOO_SLOW and self._store.present(attempt.blobs) > attempt.had
            failed = _failed(fetch, failure, reached=attempt.reached, moved=moved)
            return JobEnding(lambda: self._end(failed))
        finally:
            attempt.end()
            with self._lock:
                self._attempts.pop(fetch.job, None)
        # Also if it was cancelled meanwhile: the model is stored.
        committed = ModelCommitted(job=fetch.job, model=model, fresh=fresh)
        return JobEnding(lambda: self._end(committed), late=True)

    def _pull(
        self, wanted: Reference, fetch: FetchModel, attempt: _Attempt, cancel: Cancel
    ) -> tuple[Model, bool]:
        """The model, and whether anything of it had to be fetched."""
        if cancel.is_set():
            raise JobCancelled
        attempt.report("resolving", 0, 0, "")
        pin = wanted.digest
        if pin and (here := self._here(wanted)) is not None:
            # It can be no other model, whatever its source says.
            return self._named(here, wanted.stored_tag), False
        self._store.check_writable()
        reference, context = self._source_of(wanted, fetch.token, cancel)
        if fetch.origin:
            reference = Reference.parse(f"file:{fetch.origin}")
            context = replace(context, sharing=not fetch.copy)
        try:
            source = source_for(reference, context)
            offer = source.describe(reference, cancel)
            known = self._store.known(offer.fingerprint)
            if known is None:
                offer = source.measure(offer, cancel)
        except JobFailed as error:
            here = self._here(wanted)
            # A source that does not answer is no reason to refuse what is stored already.
            if error.failure.kind != "transient" or here is None:
                raise
            log.info("using the stored %s: %s", wanted, error.failure.message)
            return here, False
        attempt.reached = True
        if fetch.origin and (here := self._here(wanted)) not in (None, known):
            raise name_taken(fetch.reference)
        if known is not None:
            check_pin(known.id, pin)
            return self._named(known, wanted.stored_tag), False
        return self._fetch(source, offer, wanted, fetch.force, attempt, cancel), True

    def _source_of(self, reference: Reference, token: str, cancel: Cancel) -> tuple[Reference, SourceContext]:
        """Where a name stands for something else: that, and what must come from there."""
        entry = self._catalogue.find(reference)
        pins = Pins()
        if entry is not None:
            reference = Reference.parse(entry.source)
            pins = Pins(sha256=entry.sha256, size=entry.size, package_sha256=entry.package_sha256)
        return reference, SourceContext(
            self._store.root, self._packages, pins, token, self._registries, cancel=cancel
        )

    def _fetch(
        self, source: Source, offer: Offer, wanted: Reference, force: bool, attempt: _Attempt, cancel: Cancel
    ) -> Model:
        attempt.blobs, attempt.had = offer.blobs, self._store.present(offer.blobs)
        if not force:
            check_machine(offer, self._machine())
            free = self._free_beside(attempt, offer.writes - attempt.had)
            check_disk(offer, attempt.had, free, str(self._store.root))
        with self._store.arrival() as arrival:
            source.fetch(offer, arrival, attempt.report, cancel)
            if cancel.is_set():
                raise JobCancelled
            attempt.report("committing", offer.size, offer.size, "")
            return self._store.commit(
                arrival,
                tag=wanted.stored_tag,
                source=offer.source,
                fingerprint=offer.fingerprint,
                pin=wanted.digest,
                recipe=arrival.recipe,
            )

    def _free_beside(self, attempt: _Attempt, needed: int) -> int:
        """Bytes free on the disk, less what the other pulls still have to bring.

        If they are fewer than needed, what can be spared on the disk is dropped first.
        """
        with self._lock:
            others = [one.last for one in self._attempts.values() if one is not attempt]
        theirs = sum(max(0, one.total - one.done) for one in others)
        return self._store.room.free(needed + theirs + RESERVE if needed > 0 else 0) - theirs

    def _here(self, wanted: Reference) -> Model | None:
        """The model of that name; for a name with a digest the one with that id, whatever it is called."""
        tag, pin = wanted.stored_tag, wanted.digest
        fits = lambda one: one.id == pin if pin else bool(tag) and tag in one.tags  # noqa: E731
        return next(filter(fits, self._store.look()), None)

    def _named(self, model: Model, tag: str) -> Model:
        return self._store.tag(model.id, tag) if tag and tag not in model.tags else model

    def _change(self, effect: _Change | InspectModels, cause: str) -> None:
        def run(_: Cancel) -> JobEnding:
            try:
                reports = tuple(self._changed(effect))
            except Exception as error:  # noqa: BLE001 - the actor waits for an answer
                failure = failure_of(error, "changing the model store")
                if isinstance(effect, InspectModels):
                    log.error("the model store cannot be read: %s %s", failure.sentence(), failure.detail)  # noqa: TRY400
                reports = (EffectEnded(effect=effect, failure=failure),)
            return JobEnding(lambda: tell(*reports), late=True)

        def tell(*reports: Command[Any]) -> None:
            for report in reports:
                whose = (
                    msgspec.structs.replace(report, cause=cause)
                    if isinstance(report, EffectEnded | Happened)
                    else report
                )
                self._tell(LIBRARY, whose)

        stopped = Failure(kind="transient", code="stopping", message="Greenroom is stopping.")
        gone = EffectEnded(effect=effect, failure=stopped)
        self._changes.start(f"change {next(self._change_numbers)}", run, lambda: tell(gone))

    def _changed(self, effect: _Change | InspectModels) -> Iterator[Command[Any]]:
        """Make a change; yields its reports."""
        match effect:
            case InspectModels():
                # Taken first: a job that ends later also reports its end later.
                running = self._pulls.keys()
                models = self._store.look()
                yield ModelsSeen(models=models, running=running, recovered=self._store.recovered())
            case DeleteModel(model_id=one):
                freed = self._store.remove(one)
                self._forget(one)
                removed = ModelRemoved(model_id=one, reason="requested by the user", freed=freed)
                yield EffectEnded(effect=effect, event=removed)
            case AddTag(model_id=one, tag=tag):
                before = self._store.models()
                tags = self._store.tag(one, tag).tags
                yield EffectEnded(effect=effect, event=ModelTagged(model_id=one, tags=tags))
                yield from _untagged(before, tag, one)
            case RemoveTag(model_id=one, tag=tag):
                if tag in self._store.model(one).tags:
                    self._store.untag(tag)
                tags = self._store.model(one).tags
                yield EffectEnded(effect=effect, event=ModelTagged(model_id=one, tags=tags))
            case StoreAgain(model_id=one, tag=tag, context_size=context_size):
                before = self._store.models()
                model = self._store.repackage(one, tag=tag, recipe=Recipe(context_size=context_size))
                yield EffectEnded(effect=effect, event=ModelCommitted(job="", model=model))
                yield from _untagged(before, tag, model.id)
            case SweepStore():
                with self._lock:
                    blobs = [blob for one in self._attempts.values() for blob in one.blobs]
                busy = {digest.removeprefix("sha256:") for digest, _ in blobs}
                freed = self._store.sweep(kept=0.0, busy=busy)
                yield EffectEnded(effect=effect, answer=Pruned(freed=freed))

    def _publish(self, job: str, progress: Progress) -> None:
        if job in self._shown:
            try:
                self._board.publish(progress)
            except Exception:
                log.exception("The progress of a pull could not be published")

    def _hide(self, job: str) -> None:
        reference = self._shown.pop(job, None)
        if reference is not None:
            self._board.clear(pull_job(reference))

    def _end(self, event: ModelCommitted | PullAttemptFailed | PullCancelled) -> None:
        self._hide(event.job)
        self._tell(LIBRARY, Happened(event=event))


def _failed(fetch: FetchModel, failure: Failure, *, reached: bool, moved: bool = False) -> PullAttemptFailed:
    """An attempt has failed; when the next one begins, if any, is the library's to say."""
    return PullAttemptFailed(
        job=fetch.job,
        attempt=fetch.attempt,
        failure=failure,
        retry_at=0.0,
        streak=0 if moved else 1,
        reached=reached,
    )


def _untagged(before: Sequence[Model], tag: str, taken_by: str) -> Iterator[Happened]:
    """The model that had a tag which another one has now."""
    for model in before:
        if tag in model.tags and model.id != taken_by:
            tags = tuple(one for one in model.tags if one != tag)
            yield Happened(event=ModelTagged(model_id=model.id, tags=tags))
