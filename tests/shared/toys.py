"""Backends small enough to be installed in a tenth of a second, each with its lock."""

from __future__ import annotations

from dataclasses import dataclass

from greenroom.runner.backends.base import Backend, CommandLine, Environment, Launch, Platform
from greenroom.runner.installations.lock_file import LockedFile


@dataclass
class Toy:
    """A backend small enough to be installed in a tenth of a second."""

    source: Environment
    files: tuple[LockedFile, ...]
    backend: Backend


def toy_of(backend_name: str, stem: str, files: tuple[LockedFile, ...]) -> Toy:
    declared = Environment(
        distribution=backend_name, lock=stem, probe=(backend_name,), requirements=(backend_name,)
    )

    class Declared(Backend):
        name = backend_name
        title = "for tests"
        formats = ("gguf",)
        modes = ("completion",)
        preference = install_preference = 1
        source = declared

        def verdict(self, platform: Platform) -> str:
            return ""

        def command(self, launch: Launch) -> CommandLine:
            return CommandLine(argv=(str(launch.python),))

    return Toy(declared, files, Declared())
