"""Runs a keeper isolated (`python -I -S keeper_main.py`), with only the standard library.

An isolated interpreter finds no installed package, so our own are set up from this file's path, without the
code in their `__init__`. A keeper needs few of our modules, and none of them needs a library.
"""

from __future__ import annotations

import os
import sys
import types

ENGINES = os.path.dirname(os.path.realpath(__file__))


def find_packages() -> None:
    """Make the keeper's modules importable under their own names."""
    for name, folder in (
        ("greenroom", None),
        ("greenroom.runner", os.path.dirname(ENGINES)),
        ("greenroom.runner.engines", ENGINES),
    ):
        package = types.ModuleType(name)
        package.__path__ = [] if folder is None else [folder]
        sys.modules[name] = package


if __name__ == "__main__":
    find_packages()
    from greenroom.runner.engines.keeper import main

    sys.exit(main())
