"""llama.cpp compiled for Vulkan by the command line, on a second device without a card: Mesa's llvmpipe.

It needs Debian's packages (see `needed`) and, on Debian 12, newer headers: `.ci/vulkan-sdk`. What is compiled
is kept in the test cache: the first run takes a quarter of an hour on two idle cores, the others a minute.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.backends.llama_cpp_builds import LLAMA_CPP_BUILDS
from greenroom.runner.backends.source_build import lacking
from greenroom.runner.installations.toolchain import look
from waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(3 * 3600)]

BUILD = LLAMA_CPP_BUILDS["build-vulkan"]
BOUND = 2.5 * 3600.0
LAYERS = 31
"""SmolLM2-135M's 30, and its output."""
ANSWER = {"max_tokens": 4, "temperature": 0}
"""The device makes a token a second."""


@pytest.fixture(scope="module")
def needed(test_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the device; the tests are skipped where there is none."""
    drivers = sorted(Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json"))
    if not drivers:
        pytest.skip("there is no llvmpipe: apt-get install mesa-vulkan-drivers")
    env: dict[str, str] = {}
    headers = test_cache / "vulkan-sdk"
    if "VULKAN_SDK" in os.environ or headers.is_dir():
        env["VULKAN_SDK"] = os.environ.get("VULKAN_SDK", str(headers))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        message, _ = lacking(look(BUILD, tmp_path_factory.mktemp("look")))
    if message:
        pytest.skip(
            f"{message} apt-get install g++ glslc libvulkan-dev spirv-headers; "
            f"on Debian 12 also .ci/vulkan-sdk {headers}"
        )
    driver = tmp_path_factory.mktemp("driver") / "lvp_icd.json"
    shutil.copy(drivers[0], driver)
    # llama.cpp leaves out devices that are processors, unless they are named.
    return {
        **env,
        "GGML_VK_VISIBLE_DEVICES": "0",
        **dict.fromkeys(("VK_DRIVER_FILES", "VK_ICD_FILENAMES"), str(driver)),
    }


@pytest.fixture(scope="module")
def vulkan_home(
    tmp_path_factory: pytest.TempPathFactory,
    test_cache: Path,
    needed: dict[str, str],
    make_home_daemon: Callable[..., Any],
) -> Path:
    """A data directory with llama.cpp for Vulkan, compiled by the command line. Copy it, do not use it."""
    home = tmp_path_factory.mktemp("vulkan") / "home"
    kept = test_cache / "llama-cpp-builds"
    for folder in ("builds", "sources"):
        link(kept / folder, home / "cache" / folder)
    daemon = make_home_daemon(home, **needed)
    daemon.bound = BOUND
    daemon.start()
    done = daemon.run("install-runner", "--build", "vulkan")
    (home.parent / "install.txt").write_text(done.stdout + done.stderr)
    for folder in ("builds", "sources"):
        link(home / "cache" / folder, kept / folder)
    assert done.returncode == 0, done.stdout + done.stderr
    daemon.stop()
    return home


@pytest.fixture
def vulkan(
    vulkan_home: Path, make_daemon: Callable[..., Any], needed: dict[str, str], smollm2_gguf: Path
) -> Any:
    """A daemon with llama.cpp for Vulkan and the real model."""
    daemon = make_daemon(vulkan_home, GREENROOM_KEEP_ALIVE="-1", **needed)
    daemon.bound = 600.0
    daemon.start()
    daemon.pull(str(smollm2_gguf))
    return daemon


def link(source: Path, target: Path) -> None:
    """Have every file of a folder in another one too, without a second copy of its bytes."""

    def same(one: str, other: str) -> None:
        if not os.path.exists(other):
            os.link(one, other)

    if source.is_dir():
        unfinished = shutil.ignore_patterns("*.part")
        shutil.copytree(source, target, copy_function=same, dirs_exist_ok=True, ignore=unfinished)


def record_of(home: Path) -> tuple[Path, dict[str, Any]]:
    """The installation's folder and what it says about itself."""
    (mark,) = (home / "backends" / "llama.cpp").glob("build-vulkan-*/installation.json")
    return mark.parent, json.loads(mark.read_text())


def test_vulkan_llama_cpp_is_compiled_installed_and_names_its_toolchain(
    vulkan_home: Path, vulkan: Any
) -> None:
    folder, record = record_of(vulkan_home)
    assert sorted(record["files"]) == ["bin/llama-server"]
    assert record["variant"] == "build-vulkan"
    assert "glslc" in record["built_with"]
    assert "GGML_VULKAN=ON" in record["built_with"]
    assert [path.name for path in folder.iterdir() if path.name != "installation.json"] == ["bin"]
    assert "llama.cpp backend installed successfully" in (vulkan_home.parent / "install.txt").read_text()
    told = " ".join(vulkan.run("why", "llama.cpp").stdout.split())
    assert f"It was compiled on this machine with {record['built_with']}." in told


def test_the_real_model_lies_on_the_device_as_planned_and_is_served_there(
    vulkan: Any, smollm2_gguf: Path
) -> None:
    answer = vulkan.chat(str(smollm2_gguf), **ANSWER)
    assert answer.status == 200, answer.body
    assert answer.json["usage"]["completion_tokens"] > 0
    (engine,) = vulkan.engines()
    assert engine["installation"].startswith("build-vulkan-")
    assert "llvmpipe" in engine["device"]
    ((_, told),) = vulkan.events("engine_loaded")
    assert told["planned"] == told["loaded"]["layers"] == told["loaded"]["total"] == LAYERS
    # Prompts are kept in memory; the rest is on the device, and no more than was reserved.
    (reserved,) = engine["promises"]
    on_device = reserved["total"] - reserved["prompt_cache"]
    assert abs(told["loaded"]["size"] - on_device) < max(0.05 * on_device, 300 * 2**20)
    log = engine_log(vulkan, engine)
    assert f"offloaded {LAYERS}/{LAYERS} layers to GPU" in log
    assert "Vulkan0 model buffer size" in log


def test_a_driver_that_is_taken_away_is_told_and_the_processor_answers(
    vulkan: Any, needed: dict[str, str], smollm2_gguf: Path
) -> None:
    driver = Path(needed["VK_DRIVER_FILES"])
    away = driver.with_suffix(".away")
    driver.rename(away)
    try:
        assert vulkan.chat(str(smollm2_gguf), **ANSWER).status == 200
        (engine,) = vulkan.engines()
        assert "Vulkan0" not in engine_log(vulkan, engine)
        told = " ".join(vulkan.run("why", str(smollm2_gguf)).stdout.split())
        assert f"has 0 layers on devices, fewer than the {LAYERS} that were planned" in told
        assert "no usable GPU found" in told
        assert "No graphics device was found" in vulkan.run("devices").stdout
        until(
            lambda: any(
                gone["name"].startswith("llvmpipe")
                for _, change in vulkan.events("devices_changed")
                for gone in change.get("before", ())
            )
        )
    finally:
        away.rename(driver)


def engine_log(daemon: Any, engine: dict[str, Any]) -> str:
    """What the engine has printed."""
    logs = sorted((daemon.home / "engines" / engine["engine_id"]).glob("*log*"))
    return "".join(log.read_text(errors="replace") for log in logs)
