"""Effects of a runner, performed by the engine host."""

from __future__ import annotations

from greenroom.actors.kernel.core import Effect
from greenroom.actors.values import Engine, EngineSpec


class SpawnEngine(Effect, frozen=True, kw_only=True):
    """Start an engine. Reports EngineSpawned, EngineMoved, EngineReady, EngineExited."""

    spec: EngineSpec


class EndEngine(Effect, frozen=True, kw_only=True):
    """End an engine, with increasingly forceful signals. Reports EngineExited, or EngineLost if unknown."""

    backend: str
    engine_id: str
    reason: str


class RecoverEngines(Effect, frozen=True, kw_only=True):
    """Look for engines of an earlier life. Reports EngineAdopted, EngineExited or EngineLost for each."""

    backend: str
    engines: tuple[Engine, ...]
