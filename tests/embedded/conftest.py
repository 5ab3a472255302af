"""A data directory for a Greenroom in this process."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(short_path: Path) -> Path:
    return short_path
