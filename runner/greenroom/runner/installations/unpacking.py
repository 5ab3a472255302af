"""Unpacks wheels into an environment while the next ones are still on their way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from threading import Event

from greenroom.runner.engines.identity import ProcessIdentity
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations.disk import Attempt, write_attempt
from greenroom.runner.installations.lock import LockedFile
from greenroom.runner.installations.record import ENVIRONMENT, base_python
from greenroom.runner.installations.uv import Uv
from greenroom.runner.installations.wheels import WheelStore

_BATCH_BYTES = 8 * 10**6
"""So much is worth a run of uv while files still arrive; the rest is done in one at the end."""
_TICK = 0.1
_SECONDS = 1800.0


class Unpacking:
    """One environment in the making: files are added as they arrive, a thread hands them to uv.

    uv makes the environment's files hard links to what it unpacked into its cache (clones on macOS), so a
    second environment of the same packages costs no space and a tenth of the time.
    """

    def __init__(
        self, uv: Uv, wheels: WheelStore, folder: Path, job: str, before: Callable[[list[LockedFile]], None]
    ) -> None:
        """Begin.

        Args:
            folder: The installation's.
            job: For `attempt.json`.
            before: Called with each batch before it is unpacked; may refuse with `JobFailed`.
        """
        self._uv = uv
        self._wheels = wheels
        self._folder = folder
        self._job = job
        self._before = before
        self._stop = Event()
        self._change = threading.Condition()
        self._waiting: list[LockedFile] = []
        self._complete = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f"unpack-{job}", daemon=True)
        self._thread.start()

    def add(self, file: LockedFile) -> None:
        """The file is in the store."""
        with self._change:
            self._waiting.append(file)
            self._change.notify()

    def is_set(self) -> bool:
        """True when it has failed, and fetching on would be in vain."""
        return self._failure is not None

    def finish(self, cancel: Event) -> None:
        """Wait until everything that was added is unpacked.

        Raises:
            JobFailed: What uv could not do.
            JobCancelled: `cancel` was set.
        """
        with self._change:
            self._complete = True
            self._change.notify()
        while self._thread.is_alive():
            self._thread.join(_TICK)
            if cancel.is_set():
                self._stop.set()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End it, uv included, and wait until nothing writes into the folder any more."""
        self._stop.set()
        with self._change:
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            self._make_environment()
            while batch := self._next_batch():
                self._before(batch)
                self._install(batch)
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits in `finish`
            self._failure = error

    def _next_batch(self) -> list[LockedFile]:
        """What is to be unpacked next; empty when everything is."""
        with self._change:
            while not self._complete and sum(file.size for file in self._waiting) < _BATCH_BYTES:
                if self._stop.is_set():
                    raise JobCancelled
                self._change.wait()
            batch, self._waiting = self._waiting, []
        return batch

    def _make_environment(self) -> None:
        args = ["venv", str(self._folder / ENVIRONMENT), "--python", str(base_python())]
        args += ["--no-project", "--offline", "--quiet"]
        self._uv.run(args, cancel=self._stop, on_start=self._started, deadline=120.0)

    def _install(self, batch: list[LockedFile]) -> None:
        wanted = self._folder / "requirements.txt"
        lines = [
            f"{file.project} @ {self._wheels.path(file).absolute().as_uri()} --hash=sha256:{file.sha256}"
            for file in batch
        ]
        wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
        python = self._folder / ENVIRONMENT / "bin" / "python"
        args = ["pip", "install", "--python", str(python), "-r", str(wanted), "--no-deps", "--require-hashes"]
        args += ["--only-binary", ":all:", "--no-index", "--offline", "--quiet"]
        try:
            self._uv.run(args, cancel=self._stop, on_start=self._started, deadline=_SECONDS)
        except JobFailed as failed:
            # All were whole when they were fetched. If the disk has changed one since, that is the reason,
            # however uv may put it, and the next attempt fetches it again.
            if bad := self._wheels.check(batch, self._stop):
                raise JobFailed.transient(
                    "cache_damaged",
                    f"The cached file {bad[0].name} was damaged on the disk and has been removed.",
                    advice="It is fetched again by the next attempt.",
                    detail=failed.failure.detail,
                ) from failed
            raise
        wanted.unlink()

    def _started(self, pid: int) -> None:
        who = ProcessIdentity.of(pid)
        if who is not None:
            attempt = Attempt(job=self._job, pid=who.pid, started=who.started, boot=who.boot)
            write_attempt(self._folder, attempt)
