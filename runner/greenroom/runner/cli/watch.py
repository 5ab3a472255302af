"""Shows what the daemon does while a command waits: the jobs its request needs, beside its own."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Self

from greenroom.runner.cli.client import Client, Gone, Refused
from greenroom.runner.cli.display import Display

_QUIET = 0.3
"""Seconds of waiting about which nothing is said."""
_LOOK_EVERY = 0.25


class Watch:
    """Looks at the daemon's jobs on a thread of its own while the `with` block waits for something else.

    Shown are the jobs that waiting requests wait for, ours among them, and the installation of backends that
    are wanted from the start. What the command follows itself it puts into `own`.
    """

    def __init__(self, client: Client, shown: Display) -> None:
        self._client = client
        self._shown = shown
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._installing: set[str] = set()
        self.own: set[str] = set()
        """Jobs that are shown by somebody else."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if kind is None:
            # What has just ended is still told; on Ctrl-C or an error nobody wants to wait for that.
            self._thread.join(timeout=2.0)

    def _look(self) -> None:
        seen: set[str] = set()
        began = time.monotonic()
        # A second look after the end tells of jobs that ended in between.
        while not self._over.wait(_LOOK_EVERY if time.monotonic() - began > _QUIET else _QUIET):
            seen = self._show(seen)
        if seen or self._installing:
            self._show(seen)

    def _show(self, seen: set[str]) -> set[str]:
        try:
            running = self._jobs()
        except (Refused, Gone):
            return seen
        for name in seen - running.keys():
            self._shown.finish(name)
        for name, job in running.items():
            if name.startswith("install/") and name not in self._installing:
                self._installing.add(name)
                self._shown.note(f"Installing {name.removeprefix('install/')} backend...")
            self._shown.update({**job, "job": name})
        self._tell_installed(self._installing - running.keys())
        return set(running)

    def _tell_installed(self, ended: set[str]) -> None:
        self._installing -= ended
        if not ended:
            return
        try:
            states = self._client.get("/engines/status")
        except (Refused, Gone):
            return
        for name in sorted(job.removeprefix("install/") for job in ended):
            if str(states.get(name, "")).startswith("Running"):
                self._shown.note(f"{name} backend installed successfully")

    def _jobs(self) -> dict[str, dict[str, Any]]:
        from greenroom.runner.backends.catalog import OWN

        jobs = {str(job["job"]): job for job in self._client.get("/jobs") or ()}
        defaults = {f"install/{name}" for name, backend in OWN.items() if not backend.deferred}
        found = {name: jobs[name] for name in defaults & jobs.keys()}
        for name, job in jobs.items():
            if name.startswith("request/"):
                # Without a job to follow it waits for its turn, which is worth a line too.
                followed = str(job.get("follows") or name)
                # What an engine prints while it loads is for its log; which one it is, the request knows.
                found[followed] = job if followed.startswith("load/") else jobs.get(followed, job)
        return {name: job for name, job in found.items() if name not in self.own}
