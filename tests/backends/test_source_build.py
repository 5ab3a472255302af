"""Recipes for compiling: what is missing on which system, what cmake is given, and what its output means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from greenroom.actors.values import EngineSpec
from greenroom.runner.backends.base import Launch, ModelFiles
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.llama_cpp_builds import LLAMA_CPP_BUILDS
from greenroom.runner.backends.source_build import (
    Percent,
    Toolchain,
    arguments,
    first_error,
    jobs_for,
    key_of,
    lacking,
    ran_out_of_memory,
)

VULKAN = LLAMA_CPP_BUILDS["build-vulkan"]
TOOLCHAIN = Toolchain(
    family="debian",
    programs={"C compiler": "/usr/bin/cc", "C++ compiler": "/usr/bin/c++"},
    versions={"cc": "cc (Debian 12.2.0-14) 12.2.0", "glslc": "shaderc v2023.2 v2022.4"},
    processors="#define __AVX2__ 1",
)


@pytest.mark.parametrize(
    ("family", "command"),
    [
        ("debian", "sudo apt install build-essential glslc libvulkan-dev spirv-headers"),
        (
            "fedora",
            "sudo dnf install gcc gcc-c++ glslc vulkan-headers vulkan-loader-devel spirv-headers-devel",
        ),
        ("arch", "sudo pacman -S base-devel shaderc vulkan-headers vulkan-icd-loader spirv-headers"),
        (
            "alpine",
            "sudo apk add build-base linux-headers shaderc vulkan-headers vulkan-loader-dev spirv-headers",
        ),
        ("suse", "sudo zypper install gcc gcc-c++ shaderc vulkan-devel spirv-headers-devel"),
        (
            "macos",
            (
                "xcode-select --install && "
                "brew install shaderc vulkan-headers vulkan-loader molten-vk spirv-headers"
            ),
        ),
    ],
)
def test_one_command_installs_all_that_is_missing(family: str, command: str) -> None:
    needs = [need for need in (*VULKAN.compiler, *VULKAN.needs) if need.packages]
    message, advice = lacking(Toolchain(family=family, programs={}, lacking=tuple(needs)))
    assert message == (
        "This machine has no C compiler, C++ compiler, standard C++ headers, shader compiler (glslc), "
        "Vulkan headers and SPIR-V headers."
    )
    assert advice == f"Install what is missing: {command}"


def test_what_no_package_has_comes_with_a_sentence_of_its_own() -> None:
    old = next(need for need in VULKAN.needs if not need.packages)
    assert lacking(replace(TOOLCHAIN, lacking=(old,))) == (
        "This machine has no Vulkan headers of version 1.3.272 or later.",
        (
            "Debian 12 and Ubuntu 22.04 have older ones: unpack the Vulkan SDK of vulkan.lunarg.com, "
            "and start the daemon with VULKAN_SDK set to its folder."
        ),
    )
    nvcc = LLAMA_CPP_BUILDS["build-cuda"].needs[-1]
    assert "https://developer.nvidia.com" in lacking(Toolchain("fedora", {}, (nvcc,)))[1]
    assert lacking(Toolchain("debian", {}, (nvcc,)))[1].endswith("sudo apt install nvidia-cuda-toolkit")
    assert lacking(Toolchain("", {}, (VULKAN.compiler[0],)))[1].startswith("Install them with your system's")
    assert lacking(TOOLCHAIN) == ("", "")


@pytest.mark.parametrize(("name", "option"), [("cuda", "CUDA"), ("rocm", "HIP"), ("vulkan", "VULKAN")])
def test_each_recipe_compiles_one_program_for_this_processor_and_fetches_nothing(
    name: str, option: str
) -> None:
    for build in (LLAMA_CPP_BUILDS[f"build-{name}"], LLAMA_CPP_BUILDS["build-native"]):
        told = arguments(build, TOOLCHAIN)
        assert (f"-DGGML_{option}=ON" in told) == (build.sees != "")
        assert {"-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"} <= set(told)
        assert "-DFETCHCONTENT_FULLY_DISCONNECTED=ON" in told
        assert f"-DLLAMA_BUILD_NUMBER={build.version.partition('.')[0]}" in told
        assert {"-DCMAKE_C_COMPILER=/usr/bin/cc", "-DCMAKE_CXX_COMPILER=/usr/bin/c++"} <= set(told)


def test_a_build_is_another_if_anything_that_decides_it_is() -> None:
    keys = {
        key_of(build, toolchain)
        for build, toolchain in (
            (VULKAN, TOOLCHAIN),
            (replace(VULKAN, sha256="0" * 64), TOOLCHAIN),
            (LLAMA_CPP_BUILDS["build-native"], TOOLCHAIN),
            (VULKAN, replace(TOOLCHAIN, versions={"cc": "cc (Debian 14.2.0-1) 14.2.0"})),
            (VULKAN, replace(TOOLCHAIN, processors="#define __AVX512F__ 1")),
            (VULKAN, replace(TOOLCHAIN, variables={"HIP_PATH": "/opt/rocm"})),
        )
    }
    assert len(keys) == 6
    assert key_of(VULKAN, replace(TOOLCHAIN, family="arch")) in keys


def test_as_many_compilers_run_as_cores_and_memory_allow() -> None:
    assert jobs_for(VULKAN, 16, 64 * 2**30) == 16
    assert jobs_for(VULKAN, 16, 5 * 2**30) == 2
    assert jobs_for(VULKAN, 16, 0) == 1


def test_a_toolchain_is_described_by_the_versions_of_its_programs() -> None:
    assert TOOLCHAIN.described() == "cc 12.2.0, glslc 2023.2"
    nvcc = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.4, V12.4.131"
    assert Toolchain("", {}, versions={"nvcc": nvcc}).described() == "nvcc 12.4"


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (
            (
                "[7/9] Building CXX object a.o\nFAILED: a.o \n/usr/bin/c++ -c x\n"
                "/w/ggml/src/ggml-vulkan.cpp:12:5: warning: unused\n"
                "/w/ggml-vulkan.cpp:5203:9: error: 'VkLayerSettingEXT' was not declared in this scope.\n"
                "/w/ggml/src/ggml-vulkan.cpp:5204:9: error: second\n"
            ),
            "ggml-vulkan.cpp: 'VkLayerSettingEXT' was not declared in this scope",
        ),
        (
            "a.c:1:10: fatal error: stdio.h: No such file or directory\n",
            "a.c: stdio.h: No such file or directory",
        ),
        ('x.cu(12): error: identifier "foo" is undefined\n', 'x.cu: identifier "foo" is undefined'),
        (
            (
                "CMake Error at ggml/CMakeLists.txt:11 (find_package):\n  Could not find a package "
                'configuration file provided by\n  "SPIRV-Headers".\n\n-- Configuring incomplete\n'
            ),
            'CMakeLists.txt: Could not find a package configuration file provided by "SPIRV-Headers"',
        ),
        (
            (
                "CMake Error in ggml/src/ggml-cuda/CMakeLists.txt:\n"
                '  CUDA_ARCHITECTURES is set to "native", but no GPU was detected.\n\n\nCMake Error: no\n'
            ),
            'CMakeLists.txt: CUDA_ARCHITECTURES is set to "native", but no GPU was detected',
        ),
        ("CMake Error: The source directory is empty.\n", "The source directory is empty"),
        (
            "/usr/bin/ld: /tmp/x.o: in function `main':\nx.c:(.text+0x5): undefined reference to `nothing'\n",
            "x.c:(.text+0x5): undefined reference to `nothing'",
        ),
        ("all is well\n", ""),
    ],
)
def test_the_first_real_error_is_found_in_the_output(output: str, told: str) -> None:
    assert first_error(output) == told


@pytest.mark.parametrize(
    ("output", "killed"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", True),
        ("clang: error: unable to execute command: Killed", True),
        ("cc1plus: out of memory allocating 65536 bytes", True),
        ("virtual memory exhausted: Cannot allocate memory", True),
        ("x.c:1:1: error: expected identifier", False),
    ],
)
def test_a_compiler_that_was_killed_is_told_from_one_that_found_an_error(output: str, killed: bool) -> None:
    assert ran_out_of_memory(output) is killed


def test_the_percentage_follows_ninja_and_never_falls() -> None:
    percent = Percent()
    assert percent.add(b"[1/200] Building a\n[50/2") == 0
    assert percent.add(b"00] Building b\n") == 25
    assert percent.add(b"[8/8] a build inside the build\n") == 25
    assert percent.add(b"[60/198] a step was not needed\n") == 30
    assert percent.add(b"warning: [99/100] is not at the front\n") == 30
    assert percent.add(b"[198/198] Linking\n") == 100


def test_a_compiled_server_is_run_itself_with_all_that_ours_gets() -> None:
    model = ModelFiles(path=Path("/m.gguf"), format="gguf", name="m", context_length=2048)
    spec = EngineSpec(
        engine_id="e",
        backend="llama.cpp",
        installation_id="i",
        model_id="m",
        model_ref="m",
        mode="completion",
    )
    launch = Launch(spec=spec, root=Path("/i"), python=Path("/p"), model=model, socket=Path("/s.sock"))
    ours = LlamaCpp().command(launch).argv
    compiled = LlamaCpp().command(replace(launch, built=Path("/i/bin/llama-server"))).argv
    theirs = LlamaCpp().command(replace(launch, binary=Path("/usr/bin/llama-server"))).argv
    assert compiled[0] == "/i/bin/llama-server"
    assert set(ours[3:]) <= set(compiled)
    # How many tokens to read at once our launcher guesses; others get a number until an engine has measured.
    assert compiled[compiled.index("--batch-size") + 1] == "512"
    assert theirs[0] == "/usr/bin/llama-server"
    assert "--ctx-checkpoints" in compiled
    assert "--ctx-checkpoints" not in theirs
    fast = LlamaCpp().command(replace(launch, built=Path("/b"), prompt_speed=100.0)).argv
    assert fast[fast.index("--batch-size") + 1] == "128"
