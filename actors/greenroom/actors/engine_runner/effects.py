"""What a runner asks the engine host to do."""

from __future__ import annotations

from greenroom.actors.kernel.core import Effect
from greenroom.actors.values import Engine, EngineSpec


class SpawnEngine(Effect, frozen=True, kw_only=True):
    """Start an engine. Reports SpawnedEngine, EngineMoved, EngineIsReady, EngineEnded."""

    spec: EngineSpec


class EndEngine(Effect, frozen=True, kw_only=True):
    """End an engine, by ever harder means. Reports EngineEnded."""

    engine_id: str
    reason: str


class RecoverEngines(Effect, frozen=True, kw_only=True):
    """Settle the journal's claims by looking. Reports AdoptedEngine, EngineEnded or LostEngine for each."""

    backend: str
    engines: tuple[Engine, ...]
