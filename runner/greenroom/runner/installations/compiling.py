"""Compiles an unpacked source tree: cmake, then ninja, at low priority, in a folder that holds everything."""

from __future__ import annotations

import gzip
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Event

from greenroom.runner.backends.source_build import (
    Percent,
    SourceBuild,
    Toolchain,
    arguments,
    first_error,
    ran_out_of_memory,
)
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.errors import machine_failed, os_failure
from greenroom.runner.installations.installed import BUILD_FOLDER
from greenroom.runner.installations.tar_stream import BadTar, TarStream
from greenroom.runner.installations.toolchain import build_environment
from greenroom.runner.systems.programs import ProgramRun, ProgramTimeout, run_program
from greenroom.runner.threads import stop_if

_UNPACKED_MOST = 4 * 2**30
_CONFIGURE_SECONDS = 1800.0
_COMPILE_SECONDS = 12 * 3600.0
"""A small board with one core needs hours for all of it."""
_IDLE_SECONDS = 900.0
_NICENESS = "15"
_DETAIL = 4_000


class Compiling:
    """One build in a folder of its own, which the caller removes."""

    def __init__(
        self,
        folder: Path,
        build: SourceBuild,
        toolchain: Toolchain,
        *,
        attempt: Path,
        cancel: Event,
        on_start: Callable[[int], None],
    ) -> None:
        """`attempt` is the folder by which a later daemon finds processes that outlived this one; `on_start`
        receives the pid of each program.
        """
        self._source = folder / "source"
        self._tools = folder / "tools"
        self._out = folder / "build"
        self._scratch = folder / "tmp"
        self._build = build
        self._toolchain = toolchain
        self._cancel = cancel
        self._on_start = on_start
        env = build_environment(self._scratch)
        # Where CUDA's compiler is, for one.
        others = dict.fromkeys(str(Path(path).parent) for path in toolchain.programs.values())
        env["PATH"] = os.pathsep.join([str(self._tools), env.get("PATH", ""), *others])
        self._env = {**env, **toolchain.variables, BUILD_FOLDER: str(attempt.absolute())}

    def unpack(self, distribution: Path, wheels: Sequence[Path]) -> None:
        """Unpack the tree, and cmake and ninja where the machine has none.

        Raises:
            JobFailed: What was fetched does not hold what the recipe says.
            OSError: It cannot be written.
        """
        for folder in (self._source, self._tools, self._out, self._scratch):
            folder.mkdir(parents=True)
        try:
            unpack_tree(distribution, self._build.tree, self._source, self._cancel)
        except (BadTar, EOFError, ValueError, gzip.BadGzipFile) as error:
            raise JobFailed.permanent(
                "bad_archive", f"{distribution.name} is not a source distribution: {error}."
            ) from error
        for wheel in wheels:
            unpack_program(wheel, self._tools)

    def configure(self) -> None:
        """Run cmake.

        Raises:
            JobFailed: It found no way to build this here.
            JobCancelled: `cancel` was set.
        """
        argv = [self._program("cmake"), "-S", str(self._source), "-B", str(self._out)]
        ended = self._run([*argv, *arguments(self._build, self._toolchain)], seconds=_CONFIGURE_SECONDS)
        if ended.code != 0:
            raise self._failed(ended, f"{self._name} cannot be compiled here")

    def compile(self, jobs: int, on_percent: Callable[[int], None]) -> Path:
        """Run ninja, with fewer compilers at once after one was killed; returns the program.

        Raises:
            JobFailed: A compiler failed, or there is not memory enough for one.
            JobCancelled: `cancel` was set.
        """
        percent = Percent()
        while True:
            argv = [self._program("ninja"), "-C", str(self._out), "-j", str(jobs), self._build.target]
            ended = self._run(
                argv, seconds=_COMPILE_SECONDS, on_output=lambda piece: on_percent(percent.add(piece))
            )
            if ended.code == 0:
                break
            if jobs == 1 or not ran_out_of_memory(ended.stdout + ended.stderr):
                raise self._failed(ended, f"Compiling {self._name} failed")
            jobs //= 2
        for program in (self._out / "bin" / self._build.target, self._out / self._build.target):
            if program.is_file():
                return program
        raise JobFailed.permanent(
            "compile_failed", f"Compiling {self._name} made no program {self._build.target}."
        )

    @property
    def _name(self) -> str:
        return f"{self._build.distribution} {self._build.version}"

    def _program(self, name: str) -> str:
        return self._toolchain.programs.get(name) or str(self._tools / name)

    def _run(
        self, argv: list[str], *, seconds: float, on_output: Callable[[bytes], None] | None = None
    ) -> ProgramRun:
        nice = shutil.which("nice")
        name = Path(argv[0]).name
        try:
            return run_program(
                [nice, "-n", _NICENESS, *argv] if nice else argv,
                cwd=self._out,
                env=self._env,
                check=partial(stop_if, self._cancel),
                on_start=self._on_start,
                on_output=on_output,
                deadline=seconds,
                idle=_IDLE_SECONDS,
                name=name,
            )
        except OSError as error:
            raise os_failure(error, f"The {name} program could not be started") from error
        except ProgramTimeout as late:
            raise machine_failed("permanent", "timed_out", str(late), _SEE_MORE, late.stderr) from late

    def _failed(self, ended: ProgramRun, what: str) -> JobFailed:
        output = f"{ended.stdout}\n{ended.stderr}".strip()
        detail = output[-_DETAIL:]
        if "No space left on device" in output or "Disk quota exceeded" in output:
            return machine_failed("permanent", "no_space", f"{what}: the disk is full.", _FREE_SPACE, detail)
        if ran_out_of_memory(output):
            message = f"{what}: a compiler was ended, as happens when there is no memory left."
            # Another attempt would begin at the beginning.
            advice = "End some other programs, then install again."
            return machine_failed("permanent", "no_memory", message, advice, detail)
        error = first_error(output) or f"{'cmake' if 'cannot' in what else 'ninja'} ended with {ended.code}"
        return machine_failed("permanent", "compile_failed", f"{what}: {error}.", _SEE_MORE, detail)


_FREE_SPACE = "Free some space on the disk of the data directory, then install again."
_SEE_MORE = "`greenroom why` with the backend's name shows the compiler's last lines."


def unpack_tree(distribution: Path, tree: str, target: Path, cancel: Event | None = None) -> None:
    """Unpack the files of one folder of a source distribution; links and all other folders are left out.

    Raises:
        BadTar, EOFError, ValueError: It is none, has no such folder, or leads out of the target.
        OSError: It cannot be written.
        JobCancelled: `cancel` was set.
    """
    found = False
    with gzip.open(distribution) as stream:
        archive = TarStream(stream.read, _UNPACKED_MOST)
        for entry in archive:
            stop_if(cancel)
            path = PurePosixPath(entry.name)
            inside = path.parts[1:]
            if entry.kind != "file" or inside[:1] != (tree,) or len(inside) < 2:
                continue
            if path.is_absolute() or ".." in inside:
                raise ValueError(f"{entry.name[:200]!r} leads out of it")
            found = True
            place = target.joinpath(*inside[1:])
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb") as file:
                for piece in archive.content():
                    file.write(piece)
            if entry.mode & 0o100:
                place.chmod(0o755)
    if not found:
        raise ValueError(f"it has no folder {tree}")


def unpack_program(wheel: Path, target: Path) -> None:
    """Unpack a wheel that carries a program, and link the program into `target` under its own name.

    cmake's lies in `cmake/data/bin`, beside the modules that it needs; ninja's in `ninja-….data/scripts`.
    """
    project = wheel.name.split("-", 1)[0]
    place = target / f"{wheel.name}.d"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    programs = [*place.glob(f"*/data/bin/{project}"), *place.glob(f"*.data/scripts/{project}")]
    if not programs:
        raise JobFailed.permanent("bad_archive", f"{wheel.name} has no program {project}.")
    for program in programs[0].parent.iterdir():
        program.chmod(0o755)
    with suppress(FileExistsError):
        (target / project).symlink_to(programs[0])
