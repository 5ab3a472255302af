"""Programs run by an installation's own Python (`-I`): standard library and the engine only."""

from __future__ import annotations

from pathlib import Path


def launcher(name: str) -> Path:
    """The file of a launcher; none is named like a library, or it would shadow it."""
    return Path(__file__).with_name(f"launch_{name}.py")


KEEPER_WATCH = Path(__file__).with_name("keeper_watch.py")
"""For launchers of others: `runpy.run_path(KEEPER_WATCH)["end_with_keeper"]()`, first of all they do."""
