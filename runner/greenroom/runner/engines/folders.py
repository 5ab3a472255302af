"""The folders of engines that have ended: which are kept for `why` and `logs`, and which are removed."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from greenroom.runner.engines.exit_report import read_end
from greenroom.runner.engines.paths import EngineFolder
from greenroom.runner.engines.recovery import keeper_of, read_claim

_log = logging.getLogger(__name__)

_KEPT_AT_SWEEP = 20
"""Folders of ended engines that a sweep leaves, newest first."""
_KEPT_MEANWHILE = 64
"""The same between two sweeps: more than runners tell of, so that what `ps --all` shows has its logs."""
_PRUNED_EVERY = 16
"""Ends after which those beyond that are removed."""


class Folders:
    """All engine folders of one data directory."""

    def __init__(self, engines_dir: Path, ours: Callable[[str], bool]) -> None:
        """`ours` says whether an engine is kept at the moment."""
        self._dir = engines_dir
        self._ours = ours
        self._ends = 0
        self._lock = threading.Lock()

    def has_ended(self) -> bool:
        """Note one more end; True when it is time to prune."""
        with self._lock:
            self._ends += 1
            return self._ends % _PRUNED_EVERY == 0

    def sweep(self, known: Collection[str], end_unknown: Callable[[EngineFolder], bool]) -> list[str]:
        """End engines nobody knows, and remove old folders of ended ones; the ids of those ended."""
        ended: list[str] = []
        kept: list[tuple[float, EngineFolder]] = []
        for path in sorted(self._dir.iterdir()) if self._dir.is_dir() else ():
            if path.name in known or self._ours(path.name) or not path.is_dir():
                continue
            folder = EngineFolder(path)
            try:
                if read_end(folder.exit) is None and end_unknown(folder):
                    ended.append(folder.engine_id)
                kept.append((path.stat().st_mtime, folder))
            except OSError as problem:
                _log.warning("engine folder %s is kept, because it cannot be read: %s", path.name, problem)
        _remove_beyond(_KEPT_AT_SWEEP, kept)
        return ended

    def prune(self) -> None:
        """Remove the oldest folders of ended engines: a daemon may run for months.

        One without `exit.json` belongs to a start that came to nothing, unless a keeper lives.
        """
        ended: list[tuple[float, EngineFolder]] = []
        with contextlib.suppress(OSError):
            for path in self._dir.iterdir():
                folder = EngineFolder(path)
                if self._ours(path.name) or (
                    not folder.exit.exists() and keeper_of(read_claim(folder)).alive()
                ):
                    continue
                with contextlib.suppress(OSError):
                    ended.append((path.stat().st_mtime, folder))
        _remove_beyond(_KEPT_MEANWHILE, ended)


def _remove_beyond(kept: int, folders: list[tuple[float, EngineFolder]]) -> None:
    for _, folder in sorted(folders, key=lambda item: item[0], reverse=True)[kept:]:
        folder.remove()
