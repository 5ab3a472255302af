"""Builds that end when and as a test says."""

from __future__ import annotations

import threading
from typing import Any

from greenroom.actors.installer.effects import BuildInstallation
from greenroom.actors.installer.messages import INSTALLER
from greenroom.actors.values import Failure, Installation
from reports import attempt_failed, build_committed


class Builds:
    """Stands in for the builder of a server: a build ends when and as the test says."""

    def __init__(self, server: Any) -> None:
        self.system = server.greenroom.system
        self.builder = server.greenroom.builder
        self.builder.start = self._start
        self.builder.cancel = self._cancel
        self.jobs: list[tuple[str, str]] = []
        self.damaged: list[str] = []
        self.builder.verify = lambda *_: self.damaged

    def _start(self, build: BuildInstallation) -> None:
        assert build.backend == "absent"
        self.jobs.append((build.job, build.version))

    def _cancel(self, job: str) -> None:
        cancelled = Failure(kind="cancelled", code="cancelled", message="cancelled")
        threading.Thread(target=self.fail, args=(job, cancelled), daemon=True).start()

    def commit(self, job: str, version: str) -> None:
        made = Installation(
            id=f"{version}-{version * 8}.1",
            backend="absent",
            version=version,
            digest=version * 8,
            built_at=float(version),
            size=1000,
        )
        self.system.report(build_committed(job, made), to=INSTALLER)

    def fail(self, job: str, failure: Failure) -> None:
        self.system.report(attempt_failed(job, failure), to=INSTALLER)
