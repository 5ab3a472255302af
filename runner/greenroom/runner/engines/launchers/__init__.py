"""Programs run by an installation's own Python (`-I`): standard library and the engine only."""

from __future__ import annotations

from pathlib import Path


def launcher(name: str, does: str = "launch") -> Path:
    """The file of a program. None is named like a library, which it would shadow."""
    return Path(__file__).with_name(f"{does}_{name}.py")


END_WITH_KEEPER = Path(__file__).with_name("end_with_keeper.py")
"""For others' launchers, whose first statement is `runpy.run_path(END_WITH_KEEPER)["end_with_keeper"]()`."""
