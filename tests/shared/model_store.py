"""What tests of the model store do with it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from greenroom.actors.values import Model
from greenroom.runner.errors import JobFailed
from greenroom.runner.models.store import ModelStore

Bring = Callable[..., Model]
"""Stores a model: the fixture `bring`."""
NEVER = threading.Event()
"""Cancels nothing."""


def blobs(store: ModelStore) -> set[str]:
    """Names of the files that it has."""
    return {path.name for path in (store.root / "blobs" / "sha256").iterdir()}


def code_of(call: Callable[[], object]) -> str:
    """The code with which it fails."""
    with pytest.raises(JobFailed) as caught:
        call()
    return caught.value.failure.code
