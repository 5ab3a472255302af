"""Programs run by an installation's own Python (`-I`): standard library and the engine only."""

from __future__ import annotations

from pathlib import Path


def launcher(name: str) -> Path:
    """The file of a launcher. None is named like a library, which it would shadow."""
    return Path(__file__).with_name(f"launch_{name}.py")


KEEPER_WATCH = Path(__file__).with_name("keeper_watch.py")
"""For third-party launchers: their first statement is `runpy.run_path(KEEPER_WATCH)["end_with_keeper"]()`."""
