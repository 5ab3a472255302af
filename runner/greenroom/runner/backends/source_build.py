"""Recipes for compiling a backend's program on the machine that runs it: what is declared and what follows.

Pure: what the machine has is a value (`Toolchain`), which `installations/toolchain.py` reads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from greenroom.runner.systems.packages import install_command

BuildKind = Literal["native", "cuda", "rocm", "vulkan"]
PREFIX = "build-"
"""What the variants' names begin with."""
_VERSION = re.compile(r"\b[vV]?(\d+\.\d+(?:\.\d+)*)")
_ALWAYS = (
    *("-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
    # Nothing may be fetched, and nothing of the user's other builds is used.
    *("-DFETCHCONTENT_FULLY_DISCONNECTED=ON", "-DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF"),
)


@dataclass(frozen=True)
class BuildNeed:
    """Something that the machine itself must have."""

    what: str
    """The end of "this machine has no …"."""
    packages: Mapping[str, str]
    """Package names by the system's family."""
    programs: tuple[str, ...] = ()
    """One of these must be on the PATH, or in `folders`; the first one found is used."""
    folders: tuple[str, ...] = ()
    """Further folders with programs, such as `/usr/local/cuda/bin`."""
    variable: str = ""
    """An environment variable by which users name the program."""
    source: str = ""
    """C++ that the compiler's preprocessor must accept."""
    otherwise: str = ""
    """What to do where no package has it, one sentence."""


@dataclass(frozen=True)
class SourceBuild:
    """Installed by compiling a source distribution with the machine's own compiler."""

    distribution: str
    version: str
    sha256: str
    size: int
    """Bytes of the distribution's file."""
    tree: str
    """Folder in the distribution that has the CMakeLists.txt."""
    target: str
    """What is built, and the name of the program in `bin/`."""
    options: Mapping[str, str]
    """CMake's cache entries; `{major}` is the version's first number."""
    needs: tuple[BuildNeed, ...]
    compiler: tuple[BuildNeed, BuildNeed]
    """For C and for C++."""
    lock: str = "build-tools"
    """Stem of the lock with the wheels of cmake and ninja, for machines without."""
    cmake: tuple[int, int] = (3, 19)
    """The oldest version that will do."""
    variables: Mapping[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    """Variables for cmake: a command whose output is the value, and what is appended to it."""
    processors: tuple[tuple[str, ...], ...] = ()
    """Commands whose output says for which processors it compiles, beside the compiler's own."""
    job_bytes: int = 2**30
    """Memory that one compiler needs at most."""
    disk_bytes: int = 6 * 10**8
    """What the sources and everything compiled take."""
    computes: str = ""
    """The launcher that computes once with the program; empty if running it must do."""
    sees: str = ""
    """How its program names the devices it should find, such as `Vulkan`; empty if it needs none."""

    @property
    def file(self) -> str:
        """The distribution's file, as PEP 625 names it."""
        return f"{self.distribution.replace('-', '_')}-{self.version}.tar.gz"

    @property
    def entries(self) -> list[tuple[str, str]]:
        """CMake's cache entries with their values for this version, in order."""
        major = self.version.partition(".")[0]
        return sorted((name, value.replace("{major}", major)) for name, value in self.options.items())


@dataclass(frozen=True)
class Toolchain:
    """What a machine has for a recipe."""

    family: str
    """Which packages the system takes, as `systems.packages` has it."""
    programs: Mapping[str, str]
    """Path by `BuildNeed.what`, or by `cmake` and `ninja` where the machine's own will do."""
    lacking: tuple[BuildNeed, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """What each program says about itself, by its file name."""
    processors: str = ""
    """What the compiler and others say about the processors of this machine."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What the user's environment and the recipe say about where compilers and libraries are."""

    def described(self) -> str:
        """`c++ 12.2.0, glslc 2023.2`."""
        found = [(name, _VERSION.search(said)) for name, said in sorted(self.versions.items())]
        return ", ".join(f"{name} {version[1]}" if version else name for name, version in found)


def arguments(build: SourceBuild, toolchain: Toolchain) -> list[str]:
    """What cmake is called with, besides the folders."""
    for_c, for_cpp = (toolchain.programs[need.what] for need in build.compiler)
    compilers = (f"-DCMAKE_C_COMPILER={for_c}", f"-DCMAKE_CXX_COMPILER={for_cpp}")
    return [*_ALWAYS, *compilers, *(f"-D{name}={value}" for name, value in build.entries)]


def key_of(build: SourceBuild, toolchain: Toolchain) -> str:
    """SHA-256 of all that decides what is compiled: two builds with the same key make the same program."""
    parts = {
        "sha256": build.sha256,
        "target": build.target,
        "arguments": arguments(build, toolchain),
        "versions": dict(sorted(toolchain.versions.items())),
        "processors": toolchain.processors,
        "variables": dict(sorted(toolchain.variables.items())),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def jobs_for(build: SourceBuild, cores: int, available: int) -> int:
    """How many compilers run at once: one for each core, as long as memory has room for them."""
    return max(1, min(cores, available // build.job_bytes))


def lacking(toolchain: Toolchain) -> tuple[str, str]:
    """What is missing, as one sentence, and what to do about it; both empty if nothing is."""
    needs = toolchain.lacking
    if not needs:
        return "", ""
    *first, last = (need.what for need in needs)
    named = f"{', '.join(first)} and {last}" if first else last
    packages = dict.fromkeys(
        package for need in needs for package in need.packages.get(toolchain.family, "").split()
    )
    advice = [need.otherwise for need in needs if need.otherwise and toolchain.family not in need.packages]
    if packages:
        advice.insert(0, f"Install what is missing: {_command(toolchain.family, list(packages))}")
    elif not advice:
        advice.append("Install them with your system's package manager.")
    return f"This machine has no {named}.", " ".join(advice)


def _command(family: str, packages: Sequence[str]) -> str:
    rest = [package for package in packages if package != "xcode"]
    commands = ["xcode-select --install"] if len(rest) < len(packages) else []
    commands += [install_command({family: " ".join(rest)}, family)] if rest else []
    return " && ".join(commands)


_ERROR = re.compile(
    r"^(?:(?P<file>[^\s:][^:\n]*?)[:(]\d+(?:[:,]\d+)*\)?: )?(?:fatal )?error: (?P<text>.+)$"
    r"|^CMake Error(?: (?:at|in) (?P<where>[^\n:]+)(?::\d+)?)?(?: \([^)]*\))?:\s*"
    r"(?P<cmake>[^\n]*(?:\n[ \t]+[^\n]+)*)"
    r"|^(?P<linker>[^\n]*(?:undefined reference to|cannot find -l|symbol\(s\) not found)[^\n]*)$",
    re.MULTILINE,
)
_NO_MEMORY = re.compile(
    r"Killed signal|terminated signal 9|\bKilled\b|signal: 9|virtual memory exhausted|out of memory"
    r"|Cannot allocate memory|std::bad_alloc|LLVM ERROR: out of memory"
)


def first_error(output: str) -> str:
    """The first real error in a compiler's or cmake's output, in at most 200 characters; empty if none."""
    match = _ERROR.search(output)
    if match is None:
        return ""
    if match["linker"]:
        text = re.sub(r"^\S*?([^/\s]+: )", r"\1", match["linker"].strip())
    else:
        where = (match["file"] or match["where"] or "").rpartition("/")[2]
        said = " ".join((match["text"] or match["cmake"] or "").split())
        text = f"{where}: {said}" if where else said
    text = text.rstrip(". ")
    return text if len(text) <= 200 else f"{text[:199]}…"


def ran_out_of_memory(output: str) -> bool:
    """Whether a compiler was killed, as the kernel does to processes when no memory is left."""
    return _NO_MEMORY.search(output) is not None


class Percent:
    """Follows ninja's `[n/m]`. Builds inside the build count their own, fewer, steps: they are left out."""

    def __init__(self) -> None:
        self.value = 0
        self._most = 0
        self._rest = b""

    def add(self, output: bytes) -> int:
        """Take a piece of output; returns the percentage, which never falls."""
        *lines, self._rest = (self._rest + output[-65536:]).split(b"\n")
        self._rest = self._rest[-4096:]
        for line in lines:
            if (step := re.match(rb"\[(\d+)/(\d+)\] ", line)) is None:
                continue
            done, total = int(step[1]), int(step[2])
            if total * 2 > self._most:
                self._most = max(self._most, total)
                self.value = max(self.value, min(100, 100 * done // max(1, total)))
        return self.value
