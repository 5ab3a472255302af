"""Run language models on this machine, and embed what runs them.

The names here are those most programs start with. Each is imported when it is first used, so a program that
takes `greenroom.actors` alone imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# One package in two source roots, `actors/` and `runner/`: each has a part of it.
__path__ = extend_path(__path__, __name__)

if TYPE_CHECKING:
    from greenroom.actors.kernel.errors import KernelError, Refusal, Refused
    from greenroom.actors.kernel.system import ActorSystem
    from greenroom.runner.config import Settings, load
    from greenroom.runner.daemon import Greenroom
    from greenroom.runner.http.app import front_door

__version__ = "0.1.0"

_HOMES = {
    "ActorSystem": "actors.kernel.system",
    "Greenroom": "runner.daemon",
    "KernelError": "actors.kernel.errors",
    "Refusal": "actors.kernel.errors",
    "Refused": "actors.kernel.errors",
    "Settings": "runner.config",
    "front_door": "runner.http.app",
    "load": "runner.config",
}

__all__ = [
    "ActorSystem",
    "Greenroom",
    "KernelError",
    "Refusal",
    "Refused",
    "Settings",
    "__version__",
    "front_door",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
