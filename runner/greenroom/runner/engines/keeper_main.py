"""Runs a keeper: `python -I -S keeper_main.py`, isolated, so that nothing but the standard library is there.

Our packages are found beside this file, without the code in their `__init__`: an isolated interpreter knows
no installed package, and a keeper needs few modules of ours, none of which needs another library.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

ENGINES = Path(__file__).resolve().parent


def find_packages() -> None:
    """Make the modules of ours that a keeper is made of importable by their own names."""
    for name, folder in (
        ("greenroom", None),
        ("greenroom.runner", ENGINES.parent),
        ("greenroom.runner.engines", ENGINES),
    ):
        package = types.ModuleType(name)
        package.__path__ = [] if folder is None else [str(folder)]
        sys.modules[name] = package


if __name__ == "__main__":
    find_packages()
    from greenroom.runner.engines.keeper import main

    sys.exit(main())
