"""What earlier engines of the same model have left."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from greenroom.actors.values import EngineSpec
from greenroom.runner.engines.paths import EngineFolder

_LOOKED_AT = 5
"""Logs of earlier engines that are read at most, latest first."""


def prompt_speed(engines_dir: Path, spec: EngineSpec, told_by: Callable[[str], float]) -> float:
    """Tokens a second that the last engine of this model on this installation has read; 0.0 when unknown.

    `told_by` finds it in a log.
    """
    folders: list[tuple[float, EngineFolder]] = []
    with contextlib.suppress(OSError):
        for path in engines_dir.iterdir():
            with contextlib.suppress(OSError):
                folders.append(((path / "claim").stat().st_mtime, EngineFolder(path)))
    folders.sort(key=lambda one: one[0], reverse=True)
    same = [folder for _, folder in folders if _is_alike(folder, spec)]
    return next((speed for one in same[:_LOOKED_AT] if (speed := told_by(one.read_log()))), 0.0)


def _is_alike(folder: EngineFolder, spec: EngineSpec) -> bool:
    try:
        about = json.loads(folder.claim.read_text("utf-8"))["about"]["spec"]
        return all(
            about.get(name) == getattr(spec, name)
            for name in ("backend", "installation_id", "model_id", "mode", "device")
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
