"""Source distributions that compile in a second, and backends that are built from them."""

from __future__ import annotations

import hashlib
import io
import tarfile

from greenroom.runner.backends.base import Backend, CommandLine, Environment, Launch, Platform
from greenroom.runner.backends.source_build import PREFIX, BuildNeed, SourceBuild
from package_index import Index

COMPILERS = (
    BuildNeed("C compiler", {"debian": "gcc"}, programs=("cc", "gcc", "clang"), variable="CC"),
    BuildNeed("C++ compiler", {"debian": "g++"}, programs=("c++", "g++", "clang++"), variable="CXX"),
)
PROGRAM = """\
#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--list-devices")) puts("Available devices:" DEVICES);
    else puts("version: 1 " GREETING);
    return 0;
}
"""
CMAKE = """\
cmake_minimum_required(VERSION 3.14)
project(toy C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(GREETING "" CACHE STRING "")
set(DEVICES "" CACHE STRING "")
add_executable(toy-server main.c)
target_compile_definitions(toy-server PRIVATE GREETING="${GREETING}" DEVICES="${DEVICES}")
"""


def distribution(files: dict[str, str], top: str = "toy_source-1.0") -> bytes:
    """A gzipped tar with these files below its top folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            data = text.encode()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def source_toy(
    index: Index,
    *,
    program: str = PROGRAM,
    cmake: str = CMAKE,
    version: str = "1.0",
    needs: tuple[BuildNeed, ...] = (),
    sees: str = "",
    **options: str,
) -> SourceBuild:
    """A recipe whose distribution is on the index."""
    files = {"toy/CMakeLists.txt": cmake, "toy/main.c": program, "PKG-INFO": "Name: toy-source\n"}
    data = distribution(files, f"toy_source-{version}")
    build = SourceBuild(
        distribution="toy-source",
        version=version,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        tree="toy",
        target="toy-server",
        options=options,
        needs=needs,
        compiler=COMPILERS,
        cmake=(3, 14),
        disk_bytes=10**6,
        sees=sees,
    )
    index.wheels.setdefault("toy-source", {})[build.file] = data
    return build


def built_backend(**builds: SourceBuild) -> Backend:
    """The backend `toy` with these recipes, by what comes after `build-`."""

    class Declared(Backend):
        name = "toy"
        title = "for tests"
        formats = ("gguf",)
        modes = ("completion",)
        preference = install_preference = 1
        source = Environment(distribution="toy", lock="toy", probe=(), requirements=("toy",))

        def verdict(self, platform: Platform) -> str:
            return ""

        def command(self, launch: Launch) -> CommandLine:
            return CommandLine(argv=(str(launch.program),))

    Declared.builds = {f"{PREFIX}{name}": build for name, build in builds.items()}
    return Declared()
