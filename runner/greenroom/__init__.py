"""Run language models on this machine, and embed what runs them.

The names in `__init__.pyi` are those most programs start with. Each is imported when it is first used, so a
program that takes `greenroom.actors` alone imports nothing else.
"""

import os
import sys

TYPE_CHECKING = False  # the constant of `typing`, which takes 2 ms to import, as pathlib, re and pkgutil do
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# One package in two source roots, `actors/` and `runner/`: each has a part of it.
_parts = (os.path.join(root, __name__) for root in sys.path if isinstance(root, str) and root)
__path__ += [
    part for part in _parts if part not in __path__ and os.path.isfile(os.path.join(part, "__init__.py"))
]
__version__ = "0.1.0"


def public_names(package: str) -> "tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]":
    """Return `__all__`, `__getattr__` and `__dir__` of a package, read from its stub.

    The stub is what type checkers and editors follow; that the names are stated there alone keeps both right.
    """
    module = sys.modules[package]
    loader: Any = module.__loader__
    stub = loader.get_data(os.path.join(module.__path__[0], "__init__.pyi")).decode()
    lines = [line.split() for line in stub.splitlines() if line.startswith("from ")]
    places = {words[3]: words[1] for words in lines if words[4:5] == ["as"]}

    def get(name: str) -> "Any":
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(places[name]), name)
        setattr(module, name, value)
        return value

    def names() -> list[str]:
        own = [name for name in vars(module) if name.startswith("__") or f"{package}.{name}" in sys.modules]
        return sorted({*own, *places})

    return sorted(places), get, names


__all__, __getattr__, __dir__ = public_names(__name__)
