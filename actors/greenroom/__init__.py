"""Run language models on this machine, and embed what runs them.

The names in `__init__.pyi` are those most programs start with. Each is imported when it is first used, so a
program that takes `greenroom.actors` alone imports nothing else.
"""

import re
from collections.abc import Callable
from importlib import import_module
from pkgutil import extend_path, get_data
from typing import Any

# One package in two source roots, `actors/` and `runner/`: each has a part of it.
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"


def public_names(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of a package, read from its stub.

    The stub is what type checkers and editors follow; that the names are stated there alone keeps both right.
    """
    stub = (get_data(package, "__init__.pyi") or b"").decode()
    places = {name: place for place, name in re.findall(r"^from (\S+) import (\w+) as ", stub, re.MULTILINE)}

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(package)
        value = getattr(import_module(places[name]), name)
        setattr(module, name, value)
        return value

    return sorted(places), get, lambda: sorted({*vars(import_module(package)), *places})


__all__, __getattr__, __dir__ = public_names(__name__)
