"""The engines whose slots can be saved, what saves them, and what they were given back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from greenroom.actors.values import Engine, EngineSpec
from greenroom.runner.backends.base import Backend
from greenroom.runner.conversations.sums import RestoredTotals
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.engines.slots import SlotFiles, slot_files

FindFiles = Callable[[EngineFolder, Path, int], SlotFiles | None]


class SaveableEngines:
    """Of one data directory. Thread-safe."""

    def __init__(
        self,
        engines_dir: Path,
        backends: Mapping[str, Backend],
        engine: Callable[[str], Engine | None],
        no_restore: Callable[[str, str], str | None],
        find_files: FindFiles = slot_files,
    ) -> None:
        """`engine` finds one by its id, `no_restore` says why a backend's installation cannot go on with what
        is saved. `find_files` finds what saves and restores an engine's slots.
        """
        self._dir = engines_dir
        self._backends = backends
        self.get = engine
        self._no_restore = no_restore
        self._find_files = find_files
        self._files: dict[str, SlotFiles] = {}
        """By engine: each remembers the files that it could not remove yet."""
        self._cannot = set[str]()
        self._restored: dict[str, RestoredTotals] = {}

    def files(self, engine: Engine) -> SlotFiles | None:
        """The slots of an engine; None if they cannot be saved."""
        spec = engine.spec
        backend = self._backends.get(spec.backend)
        if backend is None or backend.conversations != "slots" or not engine.endpoint.startswith("/"):
            return None
        if spec.engine_id in self._cannot or self._no_restore(spec.backend, spec.installation_id):
            return None
        known = self._files.get(spec.engine_id)
        if known is None:
            folder = EngineFolder(self._dir / spec.engine_id)
            known = self._find_files(folder, Path(engine.endpoint), engine.pid)
            if known is not None:
                self._files[spec.engine_id] = known
        return known

    def finds_any(self, spec: EngineSpec) -> bool:
        """Whether a request goes on from what any slot of the engine has read."""
        return self._backends[spec.backend].slots_in_prompt_cache

    def cannot(self, engine_id: str) -> None:
        """It has turned out that an engine cannot save slots."""
        self._cannot.add(engine_id)

    def restored(self, engine_id: str, tokens: int, seconds: float) -> None:
        """Count what an engine has been given back."""
        self._restored[engine_id] = self.restored_by(engine_id).plus(tokens, seconds)

    def restored_by(self, engine_id: str) -> RestoredTotals:
        """What a running engine has been given back since the start."""
        return self._restored.get(engine_id, RestoredTotals())

    def keep(self, engine_ids: Collection[str]) -> None:
        """Forget all engines but these."""
        for known in [one for one in {*self._files, *self._restored} if one not in engine_ids]:
            self._files.pop(known, None)
            self._restored.pop(known, None)
        self._cannot.intersection_update(engine_ids)
