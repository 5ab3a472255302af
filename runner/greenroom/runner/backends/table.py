"""Generates the tables of backends in `docs/backends.md` from the declarations.

`python -m greenroom.runner.backends.table docs/backends.md` updates the page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from greenroom.runner.backends.base import Backend, Environment, Image, Platform
from greenroom.runner.backends.discovery import OWN

BEGIN = "<!-- made by greenroom.runner.backends.table -->"
END = "<!-- end -->"

_PYTHON = (3, 12)
MACHINES: Mapping[str, Platform] = {
    "Linux x86_64": Platform(system="linux", machine="x86_64", python=_PYTHON),
    "Linux x86_64, NVIDIA": Platform(system="linux", machine="x86_64", python=_PYTHON, cuda=True),
    "Linux arm64": Platform(system="linux", machine="arm64", python=_PYTHON),
    "macOS 14 arm64": Platform(system="darwin", machine="arm64", python=_PYTHON, macos=(14, 0)),
    "macOS 15 arm64": Platform(system="darwin", machine="arm64", python=_PYTHON, macos=(15, 0)),
    "macOS Intel": Platform(system="darwin", machine="x86_64", python=_PYTHON, macos=(15, 0)),
}
"""The machines shown."""


def render(backends: Mapping[str, Backend] = OWN) -> str:
    return "\n\n".join((_abilities(backends), _places(backends), _choice(backends)))


def insert(text: str, backends: Mapping[str, Backend] = OWN) -> str:
    """A page with its tables regenerated.

    Raises:
        ValueError: The page has no marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{render(backends)}\n\n{END}{after}"


def _abilities(backends: Mapping[str, Backend]) -> str:
    rows = [
        (
            f"`{backend.name}`",
            ", ".join(backend.formats),
            ", ".join(backend.modes),
            "on request" if backend.deferred else "at the start",
            _source(backend),
            str(len(backend.allowed_flags)) if backend.allowed_flags else "none",
        )
        for backend in backends.values()
    ]
    return _markdown(("backend", "formats", "modes", "installed", "from", "flags users may set"), rows)


def _places(backends: Mapping[str, Backend]) -> str:
    rows = [
        (f"`{backend.name}`", *(_installed(backend, here) for here in MACHINES.values()))
        for backend in backends.values()
    ]
    return _markdown(("backend", *MACHINES), rows)


def _choice(backends: Mapping[str, Backend]) -> str:
    formats = dict.fromkeys(one for backend in backends.values() for one in backend.formats)
    rows = []
    for one in formats:
        able = [backend for backend in backends.values() if one in backend.formats]
        serving = sorted(able, key=lambda backend: backend.preference)
        offered = sorted(able, key=lambda backend: backend.install_preference)
        rows.append(
            (one, *(", ".join(f"`{backend.name}`" for backend in which) for which in (serving, offered)))
        )
    return _markdown(
        ("format", "served by the first installed of", "offered for installation, in order"), rows
    )


def _installed(backend: Backend, here: Platform) -> str:
    """What is installed on a machine, in a word."""
    if backend.verdict(here):
        return "no"
    source = _installed_from(backend, here)
    return f"`{source.distribution}`" if isinstance(source, Environment) else "the image"


def _installed_from(backend: Backend, here: Platform) -> Environment | Image:
    """What a machine installs first."""
    for one in backend.variants if backend.best_first and here.cuda else ():
        if one.runtime == "cuda" and one.source is not None:
            return one.source
    return backend.source


def _source(backend: Backend) -> str:
    """Everything it may be installed from, by machine."""
    origins = dict.fromkeys(
        _origin(_installed_from(backend, here)) for here in MACHINES.values() if not backend.verdict(here)
    )
    return "; or ".join(origins)


def _origin(source: Environment | Image) -> str:
    if not isinstance(source, Environment):
        return f"an image: `{source.reference}`, its `{source.tree}`"
    text = f"packages: `{'`, `'.join(source.requirements)}`"
    if source.indexes:
        text += f", some from {', '.join(source.indexes)}"
    if source.excluded:
        text += f", without {', '.join(source.excluded)}"
    return text


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: Sequence[str] | None = None) -> int:
    files = list(sys.argv[1:] if argv is None else argv)
    if not files:
        sys.stdout.write(render() + "\n")
    for file in files:
        path = Path(file)
        path.write_text(insert(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
