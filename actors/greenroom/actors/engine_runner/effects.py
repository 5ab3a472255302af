"""What a runner asks the engine host to do."""

from __future__ import annotations

from greenroom.actors.kernel.core import Effect
from greenroom.actors.values import Engine, EngineSpec


class SpawnEngine(Effect, frozen=True, kw_only=True):
    """Start an engine. Reports EngineSpawned, EngineMoved, EngineReady, EngineExited."""

    spec: EngineSpec


class EndEngine(Effect, frozen=True, kw_only=True):
    """End an engine, by ever harder signals. Reports EngineExited, or EngineLost for an unknown one."""

    backend: str
    engine_id: str
    reason: str


class RecoverEngines(Effect, frozen=True, kw_only=True):
    """Settle the journal's claims by looking. Reports EngineAdopted, EngineExited or EngineLost for each."""

    backend: str
    engines: tuple[Engine, ...]
