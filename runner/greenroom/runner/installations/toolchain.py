"""Looks for what a build from source needs on this machine: compilers, headers, cmake and ninja."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event

from greenroom.runner.backends.source_build import BuildNeed, SourceBuild, Toolchain
from greenroom.runner.systems.packages import family
from greenroom.runner.threads import stop_if

_SECONDS = 20.0
_NAMED = tuple(
    """
    CC CXX CUDACXX CUDAHOSTCXX HIPCXX CUDA_HOME CUDA_PATH ROCM_PATH HIP_PATH VULKAN_SDK DEVELOPER_DIR SDKROOT
    """.split()
)
"""Where compilers and libraries are. Flags and search paths for other projects do not belong to a build."""
_KEPT_VARIABLES = frozenset(("PATH", "USER", "LOGNAME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", *_NAMED))
_HOMEBREW = Path("/opt/homebrew")
_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())
"""By which option a compiler takes the processor that it runs on."""


def build_environment(folder: Path, source: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of compilers that work in a folder."""
    given = os.environ if source is None else source
    return {
        **{name: value for name, value in given.items() if name in _KEPT_VARIABLES},
        # Messages are searched for errors.
        "LC_ALL": "C",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        # The data directory may lie in a repository of the user's.
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }


def look(build: SourceBuild, folder: Path, cancel: Event | None = None) -> Toolchain:
    """What this machine has for a recipe; takes a second. `folder` is one that compilers may write to.

    Raises:
        JobCancelled: `cancel` was set.
    """
    look = _Look(build, build_environment(folder), cancel)
    return look.toolchain()


class _Look:
    def __init__(self, build: SourceBuild, env: Mapping[str, str], cancel: Event | None) -> None:
        self._build = build
        self._env = env
        self._cancel = cancel

    def toolchain(self) -> Toolchain:
        programs: dict[str, str] = {}
        missing: list[BuildNeed] = []
        needs = [*self._build.compiler, *self._build.needs]
        for need in (one for one in needs if one.programs):
            if (found := self._program(need)) is not None:
                programs[need.what] = found
            else:
                missing.append(need)
        compiler = [programs.get(need.what, "") for need in self._build.compiler]
        if all(compiler):
            missing += [one for one in needs if one.source and not self._compiles(compiler[1], one.source)]
        versions = {Path(path).name: self._says(path, "--version") for path in programs.values()}
        for tool, oldest in (("cmake", self._build.cmake), ("ninja", (1, 8))):
            path = shutil.which(tool, path=self._env.get("PATH"))
            if path is not None and _version(self._says(path, "--version")) >= oldest:
                programs[tool] = path
        return Toolchain(
            family=family(),
            programs=programs,
            lacking=tuple(missing),
            versions={name: said for name, said in versions.items() if said},
            processors=self._processors(compiler[0]) if compiler[0] else "",
            variables={name: self._env[name] for name in _NAMED if name in self._env}
            | self._variables(programs),
        )

    def _program(self, need: BuildNeed) -> str | None:
        named = (self._env.get(need.variable) or "").split() if need.variable else []
        folders = [os.path.expandvars(folder) for folder in need.folders]
        path = os.pathsep.join([self._env.get("PATH", ""), *(one for one in folders if "$" not in one)])
        for name in (*named[:1], *need.programs):
            if (found := shutil.which(name, path=path)) is not None:
                return found
        return None

    def _compiles(self, compiler: str, source: str) -> bool:
        places = [Path(self._env["VULKAN_SDK"], "include")] if self._env.get("VULKAN_SDK") else []
        places += [_HOMEBREW / "include"] if _HOMEBREW.is_dir() else []
        args = [f"-I{place}" for place in places]
        return self._run([compiler, "-std=c++17", *args, "-E", "-x", "c++", "-"], source)[0] == 0

    def _processors(self, compiler: str) -> str:
        """What the code will be compiled for, in the compilers' own words."""
        told = [platform.machine(), platform.libc_ver()[0]]
        for option in _PROCESSOR:
            code, text = self._run([compiler, *option, "-dM", "-E", "-x", "c", "-"], "")
            if code == 0:
                told += sorted(line for line in text.splitlines() if re.match(r"#define __\w+__ 1$", line))
                break
        for command in self._build.processors:
            told.append(self._says(*command))
        return "\n".join(told)

    def _variables(self, programs: Mapping[str, str]) -> dict[str, str]:
        by_name = {Path(path).name: path for path in programs.values()}
        return {
            variable: f"{self._says(by_name.get(command[0], command[0]), *command[1:])}{suffix}"
            for variable, (command, suffix) in self._build.variables.items()
            if variable not in self._env
        }

    def _says(self, *argv: str) -> str:
        code, text = self._run(argv)
        return text.strip()[:1000] if code == 0 else ""

    def _run(self, argv: Sequence[str], given: str = "") -> tuple[int, str]:
        """Exit code and output of a program that ends soon; one that does not start is 127."""
        stop_if(self._cancel)
        try:
            run = subprocess.run(
                argv,
                input=given.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._env,
                cwd=self._env["HOME"],
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return 127, ""
        return run.returncode, run.stdout.decode("utf-8", "replace")


def _version(said: str) -> tuple[int, int]:
    found = re.search(r"(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)
