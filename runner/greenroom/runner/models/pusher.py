"""Publishes stored models to registries, each push on a thread of its own, until it is there or is not."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from greenroom.actors.library.effects import SendModel
from greenroom.actors.library.events import ModelPushed, PushFailed
from greenroom.actors.library.messages import LIBRARY
from greenroom.actors.progress import FileProgress, ProgressBoard, ProgressReport, push_job
from greenroom.actors.reports import Happened, TellActor
from greenroom.actors.retry import PUSH_RETRIES
from greenroom.actors.values import Failure
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.models.errors import NO_ANSWER, TOO_SLOW, failure_of
from greenroom.runner.models.manifest import MANIFEST, Descriptor, file_names
from greenroom.runner.models.references import DEFAULT_TAG, Reference, familiar
from greenroom.runner.models.store import ModelStore
from greenroom.runner.setting_values import RegistrySettings
from greenroom.runner.threads import PATIENCE, Cancel, Crew, JobEnding, side_by_side

if TYPE_CHECKING:
    from greenroom.runner.installations.sources import PackageSources
    from greenroom.runner.registry.upload import Repository

PUSHES_AT_ONCE = 2
_BLOBS_AT_ONCE = 4
_SILENCE = 120.0
"""Seconds without a byte that goes: longer than an answer to one takes."""


class Pusher:
    """Sends models. Thread-safe."""

    def __init__(
        self,
        store: ModelStore,
        tell: TellActor,
        board: ProgressBoard,
        *,
        packages: PackageSources | None = None,
        registries: Mapping[str, RegistrySettings] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._store = store
        self._tell = tell
        self._board = board
        self._packages = packages
        self._registries = registries or {}
        self._pushes = Crew(PUSHES_AT_ONCE, "push", patience=patience)
        self._models: dict[str, str] = {}
        """reference → the model that is being sent there."""

    def start(self, send: SendModel) -> None:
        """Begin; a push of this model to this reference that is running already is left alone.

        Ends with exactly one of `ModelPushed` and `PushFailed`.
        """
        begun = self._pushes.start(
            send.reference, partial(self._run, send), lambda: self.fail(send, _cancelled())
        )
        if begun:
            self._models[send.reference] = send.model_id
        elif not self._pushes.has(send.reference):  # closed
            self.fail(send, _cancelled())
        elif self._models.get(send.reference) != send.model_id:
            self.fail(send, _other(send.reference))

    def fail(self, send: SendModel, failure: Failure) -> None:
        self._end(PushFailed(model_id=send.model_id, reference=send.reference, failure=failure))

    def _end(self, event: ModelPushed | PushFailed) -> None:
        self._board.clear(push_job(event.reference))
        self._tell(LIBRARY, Happened(event=event))

    def cancel(self, reference: str) -> None:
        self._pushes.cancel(reference)

    def close(self) -> None:
        """End all pushes, and wait for that for a bounded time."""
        self._pushes.close()

    def _run(self, send: SendModel, cancel: Cancel) -> JobEnding:
        attempt = ProgressReport(push_job(send.reference), self._board.publish)
        began = time.monotonic()
        try:
            with cancel.ends(attempt.end):
                push = _Push(self._store, send.model_id, Reference.parse(send.reference), attempt, cancel)
                sent = push.run(self._repository(push.reference, send.token, cancel))
        except JobCancelled:
            failure = _cancelled()
        except Exception as error:  # noqa: BLE001 - a caller waits for an answer
            failure = failure_of(error, "pushing the model")
        else:
            seconds = round(time.monotonic() - began, 3)
            pushed = ModelPushed(model_id=send.model_id, reference=send.reference, sent=sent, seconds=seconds)
            return JobEnding(lambda: self._end(pushed))
        finally:
            attempt.end()
        return JobEnding(lambda: self.fail(send, failure))

    def _repository(self, reference: Reference, token: str, cancel: Cancel) -> Repository:
        from greenroom.runner.installations.sources import PackageSources
        from greenroom.runner.installations.web import Web
        from greenroom.runner.registry.upload import Repository

        if reference.scheme != "oci":
            advice = "Give it a registry's name first: greenroom tag MODEL REGISTRY/YOU/MODEL"
            if reference.scheme == "huggingface":
                advice += ". For Hugging Face there is its own command: hf upload."
            raise JobFailed.permanent(
                "bad_reference", f"{reference} does not name a repository on a registry.", advice=advice
            )
        web = Web(self._packages or PackageSources.discover(), advice=NO_ANSWER, cancel=cancel)
        return Repository(web, reference, token=token, settings=self._registries, environment=os.environ)


class _Push:
    def __init__(
        self, store: ModelStore, model_id: str, reference: Reference, attempt: ProgressReport, cancel: Cancel
    ) -> None:
        self.reference = reference
        self._store = store
        self._model = store.model(model_id)
        self._manifest = store.manifest(model_id)
        self._attempt = attempt
        self._cancel = cancel
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._done = 0
        self._sent = 0
        self._gone = 0
        """As sent, but bytes that had to go again count again."""
        self._seen = 0
        self._seen_at = 0.0
        self._arrived = 0
        """Blobs that are there for sure."""
        # A layer that is in it twice is one blob.
        self._blobs = tuple({blob.digest: blob for blob in self._manifest.blobs()}.values())
        layers = [blob for blob in self._blobs if blob.digest != self._manifest.config.digest]
        self._total = sum(blob.size for blob in layers)
        names = {blob.digest: name for blob, name in file_names(self._manifest)}
        self._moving = {
            blob.digest: FileProgress(blob.digest, names.get(blob.digest, ""), blob.size) for blob in layers
        }
        """The configuration is sent too, but is no layer: its progress is not reported."""
        self._sending: dict[str, FileProgress] = {}
        """Those that had to be sent; the others only count as done."""

    def run(self, repository: Repository) -> int:
        """Send what is missing, then the manifest. Returns the bytes that were sent.

        Raises:
            JobFailed: The registry does not take it.
            JobCancelled: The push was cancelled.
        """
        attempts = 0
        while True:
            arrived = self._arrived
            try:
                self._send_all(repository)
                break
            except JobFailed as failed:
                # What has arrived is not sent again, so an attempt with progress does not count as a failure.
                attempts = 1 if self._arrived > arrived else attempts + 1
                draw = random.random()  # noqa: S311 - only spreads attempts
                again = PUSH_RETRIES.retry_at(failed.failure, attempt=attempts, now=0.0, draw=draw)
                if again is None:
                    raise
                self._pause(again, failed.failure.message)
        self._check_cancelled()
        self._attempt.report("committing", self._total, self._total, "")
        data = self._store.blob(self._model.id).read_bytes()
        kind = self._manifest.media_type or MANIFEST
        repository.publish(data, kind, self.reference.tag or self.reference.digest or DEFAULT_TAG)
        return self._sent

    def _send_all(self, repository: Repository) -> None:
        self._done = 0
        for moving in self._moving.values():
            moving.done = 0
        self._stop.clear()
        self._attempt.report("uploading", 0, self._total)
        self._seen, self._seen_at = self._gone, time.monotonic()
        calls = [partial(self._send, repository, blob) for blob in self._blobs]
        side_by_side(calls, _BLOBS_AT_ONCE, "upload", tick=self._look, halt=self._stop.set)

    def _look(self) -> None:
        """Called regularly: check for cancellation and progress."""
        self._check_cancelled()
        now = time.monotonic()
        if self._gone > self._seen:
            self._seen, self._seen_at = self._gone, now
        elif now - self._seen_at > _SILENCE:
            message = f"The registry accepted no data for {_SILENCE:.0f}s."
            raise JobFailed.transient(TOO_SLOW, message, advice=NO_ANSWER)
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        self._attempt.report("uploading", self._done, self._total, "", tuple(self._sending.values()))

    def _send(self, repository: Repository, blob: Descriptor) -> None:
        self._check()
        if repository.has(blob.digest) or self._mounted(repository, blob):
            self._count(blob, blob.size, sent=0)
            return
        path = self._store.blob(blob.digest)
        if moving := self._moving.get(blob.digest):
            with self._lock:
                self._sending[blob.digest] = moving
        repository.send(path, blob.digest, blob.size, lambda size: self._count(blob, size, sent=size))
        with self._lock:
            self._arrived += 1

    def _mounted(self, repository: Repository, blob: Descriptor) -> bool:
        """Other repositories of the registry that are known to have it need not be sent to again."""
        for tag in self._model.tags:
            other = Reference.parse(tag)
            if (other.scheme, other.registry) != ("oci", self.reference.registry):
                continue
            if other.repository != self.reference.repository and repository.mount(
                blob.digest, other.repository
            ):
                return True
        return False

    def _count(self, blob: Descriptor, size: int, *, sent: int) -> None:
        self._check()
        moving = self._moving.get(blob.digest)
        with self._lock:
            self._sent += sent
            if moving is not None:
                self._done += size
                moving.done += size
            self._gone += max(0, sent)
            self._tell()

    def _check(self) -> None:
        if self._cancel.is_set() or self._stop.is_set():
            raise JobCancelled

    def _check_cancelled(self) -> None:
        if self._cancel.is_set():
            raise JobCancelled

    def _pause(self, seconds: float, reason: str) -> None:
        self._attempt.report("waiting_to_retry", self._done, self._total, reason)
        if self._cancel.wait(seconds):
            raise JobCancelled


def _other(reference: str) -> Failure:
    return Failure(
        kind="permanent",
        code="conflict",
        message=f"Another model is being pushed to {familiar(reference)} already.",
        advice="Push again when that push has finished, or under another tag.",
    )


def _cancelled() -> Failure:
    return Failure(kind="cancelled", code="cancelled", message="cancelled")
