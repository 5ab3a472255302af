"""A Greenroom in this process whose engines are the fake one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from greenroom.runner import ExternalBackend, Greenroom, Settings, fake_backend

ENGINE = Path(__file__).parents[1] / "programs" / "fake_engine.py"


def fake_greenroom(home: Path, *flags: str, **settings: Any) -> Greenroom:
    """Not started. `flags` are the engines'."""
    backends = {"fake": ExternalBackend(binary=Path(sys.executable))}
    configured = Settings(home=home, backends=backends, **settings)
    return Greenroom(configured, backends={"fake": fake_backend(ENGINE, *flags)})
