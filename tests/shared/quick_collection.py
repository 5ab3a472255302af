"""What is collected is no garbage: the collector need neither look for it then, nor at it in each test."""

from __future__ import annotations

import gc


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
