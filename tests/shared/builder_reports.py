"""What a builder reports to the installer."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from greenroom.actors.installer.effects import (
    RemoveInstallation,
)
from greenroom.actors.installer.events import (
    InstallationCommitted,
    InstallationRemoved,
    InstallationsUnread,
    InstallAttemptFailed,
    InstallCancelled,
)
from greenroom.actors.installer.messages import INSTALLER, InstallationsSeen
from greenroom.actors.progress import ProgressBoard, install_job
from greenroom.actors.reports import EffectEnded, Happened


class BuilderReports:
    """Keeps what a builder reports, and how its jobs progress."""

    def __init__(self) -> None:
        self.reports: queue.Queue[Any] = queue.Queue()
        self.progressed: list[Any] = []
        self.at_phase: dict[str, Callable[[], Any]] = {}
        self.building: Any = None
        self.board = ProgressBoard()

    def listen(self, backend: str) -> None:
        self.board.listen(install_job(backend), self.progress)

    def progress(self, progress: Any) -> None:
        self.progressed.append(progress)
        if progress.phase in self.at_phase:
            self.at_phase[progress.phase]()

    def tell(self, to: Any, report: Any) -> None:
        assert to == INSTALLER
        match report:
            case Happened(event=InstallationCommitted() as e):
                self.reports.put(("committed", e.job, e.installation))
            case Happened(event=InstallAttemptFailed() as e):
                self.reached = e.reached
                print("failed:", e.failure)  # for a test that expected something else
                self.reports.put(("failed", e.job, e.failure))
            case Happened(event=InstallCancelled() as e):
                self.reports.put(("cancelled", e.job))
            case Happened(event=InstallationsUnread() as e):
                self.reports.put(("unread", e.backend, e.reason))
            case InstallationsSeen() as seen:
                self.unclear, self.building = seen.unclear, seen.building
                self.reports.put(("seen", seen.backend, seen.installations))
            case EffectEnded(effect=RemoveInstallation(backend=backend, installation_id=one), event=None):
                self.reports.put(("remove_failed", backend, one, report.failure))
            case EffectEnded(event=InstallationRemoved() as e):
                self.reports.put(("removed", e.backend, e.installation_id, e.freed))

    def next(self) -> Any:
        return self.reports.get(timeout=30)

    def silent(self) -> Any:
        return self.reports.empty()
