"""What users meet: backends, installations, engines, models, daemon, HTTP and command line.

What is public is said here and described in docs/embedding.md; a name is imported when it is first used, so
that the command line stays quick. Everything else may change in any version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greenroom.runner.backends.base import (
        Backend,
        Dialect,
        Environment,
        Image,
        Launch,
        Platform,
        Readiness,
    )
    from greenroom.runner.backends.catalog import BACKENDS
    from greenroom.runner.config import BadSetting, ExternalBackend, Settings, load
    from greenroom.runner.daemon import Greenroom
    from greenroom.runner.daemon_lock import HomeLocked
    from greenroom.runner.http.app import front_door
    from greenroom.runner.http.server import BadBind, PortTaken, SystemStopped, run
    from greenroom.runner.models.references import AmbiguousName, BadReference
    from greenroom.runner.testing import fake_backend, tiny_gguf

_PLACES = {
    "backends.catalog": "BACKENDS",
    "backends.base": "Backend Dialect Environment Image Launch Platform Readiness",
    "config": "BadSetting ExternalBackend Settings load",
    "daemon": "Greenroom",
    "daemon_lock": "HomeLocked",
    "http.app": "front_door",
    "http.server": "BadBind PortTaken SystemStopped run",
    "models.references": "AmbiguousName BadReference",
    "testing": "fake_backend tiny_gguf",
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names.split()}

__all__ = [
    "BACKENDS",
    "AmbiguousName",
    "Backend",
    "BadBind",
    "BadReference",
    "BadSetting",
    "Dialect",
    "Environment",
    "ExternalBackend",
    "Greenroom",
    "HomeLocked",
    "Image",
    "Launch",
    "Platform",
    "PortTaken",
    "Readiness",
    "Settings",
    "SystemStopped",
    "fake_backend",
    "front_door",
    "load",
    "run",
    "tiny_gguf",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    place = _PLACE_OF.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{place}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
