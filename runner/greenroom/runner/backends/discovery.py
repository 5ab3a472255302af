"""All backends by name: our own, and those that other distributions add.

A distribution adds one through the entry point group `greenroom.backends`:

    [project.entry-points."greenroom.backends"]
    parrot = "greenroom_parrot:Parrot"

The name is the backend's, the object a subclass or instance of `Backend`. Distributions are only searched
when all backends are listed, or for a name that is not ours. An unusable declaration is left out, with a
sentence in `problems`, so that it does not affect other backends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, get_args

from greenroom.actors.values import Mode, ModelFormat
from greenroom.runner.backends.base import RESERVED_NAMES, Backend, Environment, Image, Platform
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.mlx import Mlx
from greenroom.runner.backends.vllm import Vllm, VllmMetal

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "greenroom.backends"

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


class Catalog(Mapping[str, Backend]):
    """Backends by name, ours first. Read-only; thread-safe."""

    def __init__(self, own: Iterable[Backend], entry_points: Iterable[EntryPoint] | None = None) -> None:
        """`entry_points` default to those of the installed distributions."""
        self._own = {backend.name: backend for backend in own}
        self._entry_points = entry_points
        self._guard = Lock()
        self._found: dict[str, Backend] | None = None
        self._problems: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Backend:
        return self._own[name] if name in self._own else self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @property
    def problems(self) -> tuple[str, ...]:
        """Why backends of other distributions were left out, one sentence each."""
        self._all()
        return self._problems

    def _all(self) -> dict[str, Backend]:
        with self._guard:
            if self._found is None:
                found, problems = dict(self._own), []
                for entry in self._others():
                    try:
                        backend = _usable(entry, found)
                    except Exception as error:  # noqa: BLE001 - other people's code may raise anything
                        problems.append(
                            f"The backend {entry.name!r} of {_distribution(entry)} is ignored: "
                            f"{_words(error)}."
                        )
                    else:
                        found[backend.name] = backend
                self._found, self._problems = found, tuple(problems)
            return self._found

    def _others(self) -> list[EntryPoint]:
        if self._entry_points is not None:
            return list(self._entry_points)
        from importlib.metadata import entry_points

        return sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))


class _Unusable(Exception):
    """A declaration that breaks a rule; the text is a clause that says which."""


def _usable(entry: EntryPoint, known: Mapping[str, Backend]) -> Backend:
    """Load and validate a declaration.

    Raises:
        Exception: Whatever is wrong with it.
    """
    loaded: Any = entry.load()
    backend = loaded() if isinstance(loaded, type) else loaded
    if not isinstance(backend, Backend):
        raise _Unusable(f"{entry.value} is not a Backend")
    for attribute in ("name", "title", "formats", "modes", "preference", "install_preference", "source"):
        if not hasattr(backend, attribute):
            raise _Unusable(f"it declares no {attribute}")
    if backend.name != entry.name:
        raise _Unusable(f"it calls itself {backend.name!r}")
    if not _NAME.fullmatch(backend.name) or ".." in backend.name or backend.name in RESERVED_NAMES:
        raise _Unusable("that is not a valid backend name (lower-case letters, digits, `.`, `-`)")
    if backend.name in known:
        raise _Unusable("there is already a backend of that name")
    strange = {*backend.formats} - {*get_args(ModelFormat)} | {*backend.modes} - {*get_args(Mode)}
    if strange or not backend.formats or not backend.modes:
        raise _Unusable(f"it has unknown formats or modes: {', '.join(sorted(map(str, strange))) or 'none'}")
    if not isinstance(backend.source, Environment | Image):
        raise _Unusable("its source is neither an Environment nor an Image")
    if not isinstance(backend.verdict(Platform.here()), str):
        raise _Unusable("its verdict is not text")
    return backend


def _distribution(entry: EntryPoint) -> str:
    dist = entry.dist
    return f"{dist.name} {dist.version}" if dist is not None else entry.value


def _words(error: Exception) -> str:
    if isinstance(error, _Unusable):
        return str(error)
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


OWN: Mapping[str, Backend] = {backend.name: backend for backend in (LlamaCpp(), Mlx(), Vllm(), VllmMetal())}
"""The backends that ship with Greenroom, in display order."""

BACKENDS = Catalog(OWN.values())
"""All backends by name: those that ship with Greenroom, and those of other installed packages."""
