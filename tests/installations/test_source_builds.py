"""Programs compiled on the machine: with the real cmake, ninja and compiler, from a source of ten lines."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from builder_reports import BuilderReports
from greenroom.actors.installer.effects import BuildInstallation, RemoveInstallation
from greenroom.actors.values import Installation
from greenroom.runner.backends.source_build import BuildNeed, SourceBuild, key_of
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations import archive
from greenroom.runner.installations.builder import Builder
from greenroom.runner.installations.compiling import Compiling
from greenroom.runner.installations.installed import BUILD_FOLDER
from greenroom.runner.installations.source_builds import SourceBuilds
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.toolchain import look
from package_index import Index
from source_toys import CMAKE, PROGRAM, built_backend, source_toy
from waiting import until

SLOW = f"""{CMAKE}
add_custom_command(OUTPUT slow.h COMMAND sh -c "touch '${{MARK}}'; sleep 300" VERBATIM)
target_sources(toy-server PRIVATE slow.h)
"""
"""One step of this takes five minutes, and begins by making the file `MARK`."""


@pytest.fixture(autouse=True)
def tools() -> None:
    """Needed by all of them."""
    if not all(map(shutil.which, ("cmake", "ninja", "cc", "c++"))):
        pytest.skip("a compiler, cmake and ninja are needed: apt-get install g++ cmake ninja-build")


@pytest.fixture
def run(
    make_builder: Callable[..., Builder], heard: BuilderReports, index: Index
) -> Callable[..., tuple[Builder, Any]]:
    """Builds one recipe to its end; returns the builder and its report."""

    def run(build: SourceBuild, *, builder: Builder | None = None, **more: Any) -> tuple[Builder, Any]:
        made = builder or make_builder(backends={"toy": built_backend(native=build)})
        heard.listen("toy")
        made.start(begun(**more))
        return made, heard.next()

    return run


def begun(job: str = "j1", **more: Any) -> BuildInstallation:
    wish = {"version": "", "attempt": 1, "repair": False, **more}
    return BuildInstallation(job=job, backend="toy", variant="build-native", **wish)


def folder_of(home: Path, made: Installation) -> Path:
    return home / "backends" / "toy" / made.id


def words_of(program: Path) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout


def left_of(home: Path) -> list[str]:
    """What an attempt that did not end well has left."""
    kept = [*(home / "cache").glob("look-*"), *(home / "backends").glob("*/*")]
    return [str(path) for path in kept]


def test_a_program_is_compiled_and_only_the_program_is_installed(
    run: Callable[..., Any], home: Path, index: Index, heard: BuilderReports
) -> None:
    builder, (kind, _, made) = run(source_toy(index, GREETING="hello {major}"))
    assert kind == "committed"
    assert (made.variant, made.version) == ("build-native", "1.0")
    assert "cc " in made.built_with
    assert "(GREETING=hello 1)" in made.built_with
    folder = folder_of(home, made)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "bin/toy-server",
        "installation.json",
    ]
    assert "version: 1 hello" in words_of(folder / "bin" / "toy-server")
    assert builder.program(made) == folder / "bin" / "toy-server"
    told = [one.percent for one in heard.progressed if one.phase == "compiling"]
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 100)


def test_what_was_compiled_once_is_used_again(
    run: Callable[..., Any], home: Path, index: Index, heard: BuilderReports
) -> None:
    build = source_toy(index)
    builder, (_, _, made) = run(build)
    builder.perform(RemoveInstallation(backend="toy", installation_id=made.id), "test")
    assert heard.next()[0] == "removed"
    heard.progressed.clear()
    _, (kind, _, again) = run(build, builder=builder)
    assert (kind, again.digest) == ("committed", made.digest)
    assert not [one for one in heard.progressed if one.phase in ("downloading", "compiling")]
    assert "version" in words_of(folder_of(home, again) / "bin" / "toy-server")


def test_a_kept_program_that_was_damaged_is_compiled_again(
    run: Callable[..., Any], home: Path, index: Index, heard: BuilderReports
) -> None:
    build = source_toy(index)
    builder, (_, _, made) = run(build)
    (kept,) = (home / "cache" / "builds").glob("*/toy-server")
    kept.unlink()
    kept.write_bytes(b"damaged")
    builder.perform(RemoveInstallation(backend="toy", installation_id=made.id), "test")
    assert heard.next()[0] == "removed"
    _, (kind, _, again) = run(build, builder=builder, repair=True)
    assert kind == "committed"
    assert "version" in words_of(folder_of(home, again) / "bin" / "toy-server")


def test_kept_programs_that_no_installation_has_are_dropped_on_request(
    run: Callable[..., Any], home: Path, index: Index, heard: BuilderReports
) -> None:
    builder, (_, _, made) = run(source_toy(index))
    builder.drop_fetched()
    assert list((home / "cache" / "builds").iterdir())
    builder.perform(RemoveInstallation(backend="toy", installation_id=made.id), "test")
    assert heard.next()[0] == "removed"
    assert builder.drop_fetched() > 0
    assert not list((home / "cache" / "builds").iterdir())


def test_other_options_or_another_source_are_another_build(index: Index, tmp_path: Path) -> None:
    one = source_toy(index, GREETING="a")
    digests = set()
    for number, build in enumerate((one, source_toy(index, GREETING="b"), replace(one, sha256="0" * 64))):
        folder = tmp_path / str(number)
        folder.mkdir()
        digests.add(key_of(build, look(build, folder)))
    assert len(digests) == 3


def test_the_users_flags_and_caches_do_not_reach_the_compiler(
    run: Callable[..., Any], home: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-DGREETING_BY_FLAGS")
    monkeypatch.setenv("CPATH", "/nowhere")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    printed = 'execute_process(COMMAND env OUTPUT_VARIABLE all)\nfile(WRITE "${PLACE}" "${all}")\n'
    build = source_toy(index, cmake=CMAKE + printed, PLACE=str(home.parent / "env"))
    assert run(build)[1][0] == "committed"
    seen = (home.parent / "env").read_text()
    assert BUILD_FOLDER in seen
    for absent in ("GREETING_BY_FLAGS", "CPATH", "hf_secret"):
        assert absent not in seen


def test_a_compilers_first_error_is_the_sentence(run: Callable[..., Any], home: Path, index: Index) -> None:
    wrong = PROGRAM.replace("return 0;", "return nothing_known;")
    _, (kind, _, failure) = run(source_toy(index, program=wrong))
    assert (kind, failure.code, failure.kind, failure.blame) == (
        "failed",
        "compile_failed",
        "permanent",
        "machine",
    )
    assert failure.message.startswith("Compiling toy-source 1.0 failed: main.c: ")
    assert "nothing_known" in failure.message
    assert "ninja: build stopped" in failure.detail
    assert not left_of(home)


def test_what_cmake_does_not_find_is_the_sentence(run: Callable[..., Any], home: Path, index: Index) -> None:
    _, (_, _, failure) = run(source_toy(index, cmake=f"{CMAKE}\nfind_package(Unheard REQUIRED CONFIG)\n"))
    assert failure.code == "compile_failed"
    assert "toy-source 1.0 cannot be compiled here: CMakeLists.txt: " in failure.message
    assert "Unheard" in failure.message
    assert not left_of(home)


def test_missing_tools_are_named_before_anything_is_fetched(
    run: Callable[..., Any], home: Path, index: Index
) -> None:
    packages: dict[str, str] = dict.fromkeys(
        ("debian", "fedora", "arch", "alpine", "suse", "macos"), "gruel-dev"
    )
    needs = (
        BuildNeed("gruel compiler", packages, programs=("gruel-of-tests",)),
        BuildNeed("gruel headers", packages, source="#include <gruel/of_tests.h>\n"),
    )
    _, (kind, _, failure) = run(source_toy(index, needs=needs))
    assert (kind, failure.code, failure.blame) == ("failed", "tools_missing", "machine")
    assert "This machine has no gruel compiler and gruel headers." in failure.message
    assert not index.requests
    assert not left_of(home)


def test_a_program_that_finds_no_device_is_not_installed_and_kept(
    run: Callable[..., Any], home: Path, index: Index, heard: BuilderReports
) -> None:
    build = source_toy(index, sees="Toy")
    builder, (_, _, failure) = run(build)
    assert (failure.code, failure.blame) == ("no_device", "machine")
    assert "Available devices:" in failure.detail
    assert not left_of(home)
    heard.progressed.clear()
    run(build, builder=builder)
    assert not [one for one in heard.progressed if one.phase == "compiling"]
    assert run(source_toy(index, sees="Toy", DEVICES="\\n  Toy0: a toy"))[1][0] == "committed"


def test_cancelling_ends_every_compiler_and_leaves_nothing(
    make_builder: Callable[..., Builder], home: Path, index: Index, heard: BuilderReports
) -> None:
    mark = home.parent / "compiling"
    build = source_toy(index, cmake=SLOW, MARK=str(mark))
    builder = make_builder(backends={"toy": built_backend(native=build)})
    builder.start(begun())
    until(mark.exists)
    assert builders(home)
    builder.cancel("j1")
    assert heard.next() == ("cancelled", "j1")
    assert not builders(home)
    assert not left_of(home)


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_build_that_was_killed_with_its_daemon_is_ended_and_made_again(
    make_builder: Callable[..., Builder], home: Path, index: Index, heard: BuilderReports, is_recorded: bool
) -> None:
    mark = home.parent / "compiling"
    program = Path(__file__).parents[1] / "programs" / "build_process.py"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "shared")}
    with subprocess.Popen([sys.executable, program, home, SLOW, mark], env=env) as daemon:
        until(mark.exists)
        daemon.send_signal(signal.SIGKILL)
    assert builders(home)
    if not is_recorded:
        # As if the daemon had died between starting the compiler and noting it.
        (attempt,) = home.glob("backends/toy/*/attempt.json")
        attempt.write_bytes(b"")
    build = source_toy(index)
    builder = make_builder(backends={"toy": built_backend(native=build)})
    builder.look(["toy"])
    assert heard.next() == ("seen", "toy", ())
    assert not builders(home)
    assert not left_of(home)
    builder.start(begun())
    assert heard.next()[0] == "committed"


def builders(home: Path) -> list[psutil.Process]:
    """Living processes that were started for a build in this data directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(BUILD_FOLDER, "").startswith(str(home)):
                found.append(process)
        except psutil.Error:
            continue
    return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]


def test_after_a_compiler_was_killed_fewer_run_at_once(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tmp_path / "once"
    cc = tmp_path / "cc"
    cc.write_text(
        f'#!/bin/sh\ncase "$*" in *main.c*) [ -e {once} ] || '
        f"{{ touch {once}; echo 'cc: fatal error: Killed signal terminated program cc1' >&2; "
        "exit 1; };; esac\n"
        f'exec {shutil.which("cc")} "$@"\n'
    )
    cc.chmod(0o755)
    monkeypatch.setenv("CC", str(cc))
    build = source_toy(index)
    source = tmp_path / build.file
    source.write_bytes(index.wheels["toy-source"][build.file])
    toolchain = look(build, tmp_path)
    started: list[int] = []
    compiling = Compiling(
        tmp_path / "work",
        build,
        toolchain,
        attempt=tmp_path,
        cancel=threading.Event(),
        on_start=started.append,
    )
    compiling.unpack(source, [])
    compiling.configure()
    assert compiling.compile(2, lambda _: None).is_file()
    assert once.exists()
    assert len(started) == 3
    once.unlink()
    (tmp_path / "work" / "source" / "main.c").touch()
    with pytest.raises(JobFailed) as refused:
        compiling.compile(1, lambda _: None)
    assert (refused.value.failure.code, refused.value.failure.kind) == ("no_memory", "permanent")


def test_a_program_that_does_not_run_any_more_is_broken(
    run: Callable[..., Any], home: Path, index: Index, heard: BuilderReports
) -> None:
    builder, (_, _, made) = run(source_toy(index))
    program = folder_of(home, made) / "bin" / "toy-server"
    size = program.stat().st_size
    program.unlink()
    program.write_bytes(b"#!/bin/sh\necho 'a library is gone' >&2\nexit 1\n".ljust(size, b"\n"))
    program.chmod(0o755)
    builder.look(["toy"])
    (seen,) = heard.next()[2]
    assert seen.broken == "toy-server does not run (a library is gone)"
    assert builder.verify("toy", made.id) == ["bin/toy-server has changed"]


def test_the_newest_version_is_what_the_index_has(
    run: Callable[..., Any], index: Index, heard: BuilderReports
) -> None:
    build = source_toy(index)
    source_toy(index, version="1.10")
    builder, (_, _, made) = run(build, version="latest")
    assert made.version == "1.10"
    assert run(build, builder=builder, version="latest")[1][2] == made
    assert run(build, builder=builder, version="3")[1][2].code == "no_such_version"


def test_a_source_with_other_bytes_is_refused(run: Callable[..., Any], home: Path, index: Index) -> None:
    build = replace(source_toy(index), sha256="0" * 64)
    _, (_, _, failure) = run(build)
    assert failure.code == "hash_mismatch"
    assert not left_of(home)


def test_a_plan_names_the_source_and_its_bytes(make_builder: Callable[..., Builder], index: Index) -> None:
    build = source_toy(index)
    plan = make_builder(backends={"toy": built_backend(native=build)}).plan("toy", variant="build-native")
    assert plan.packages == ("toy-source==1.0",)
    assert (plan.variant, plan.download_bytes, plan.total_bytes) == ("build-native", build.size, build.size)


def test_a_compiled_program_is_not_exported(run: Callable[..., Any], home: Path, index: Index) -> None:
    _, (_, _, made) = run(source_toy(index))
    (record,) = SourceBuilds(home, index.sources).installed.records()
    assert record.id == made.id
    with (home / "x.tar").open("wb") as out, pytest.raises(JobFailed) as refused:
        archive.write(home, record, "toy", out)
    assert refused.value.failure.code == "not_exportable"


def test_an_older_release_leaves_a_compiled_program_alone(
    run: Callable[..., Any], home: Path, index: Index
) -> None:
    _, (_, _, made) = run(source_toy(index))
    told = msgspec.json.decode((folder_of(home, made) / "installation.json").read_bytes())
    assert told["schema"] == 2
    assert told["python"]["tag"]


def test_a_platform_without_packages_is_advised_to_compile(
    make_builder: Callable[..., Builder], index: Index, heard: BuilderReports
) -> None:
    builder = make_builder(backends={"toy": built_backend(native=source_toy(index))})
    builder.start(BuildInstallation(job="j1", backend="toy", version="", attempt=1, repair=False))
    _, _, failure = heard.next()
    assert failure.code == "no_lock"
    assert failure.advice == "Compile it on this machine: greenroom install-runner --backend toy --build"


@pytest.mark.slow
def test_on_a_machine_without_cmake_and_ninja_both_are_fetched(
    home: Path, tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = source_toy(index)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cc", "c++", "as", "ld", "ar", "ranlib", "nice"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    real = PackageSources.discover()
    sources = replace(real, extra_indexes=(*real.extra_indexes, index.sources.index))
    builds = SourceBuilds(home, sources)
    assert [name.partition("==")[0] for name in builds.plan("toy", build).packages] == [
        *("toy-source", "cmake", "ninja")
    ]
    made = builds.build("toy", build, job="j1", variant="build-native")
    assert "version" in words_of(folder_of(home, made) / "bin" / "toy-server")
    assert len(builds.installed.record(made).wheels) == 3
