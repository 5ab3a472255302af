"""llama-server itself on a device: it takes as many layers, and as much memory, as the ledger reckons.

The server is the one that `tests/daemon/test_real_vulkan.py` has compiled for Vulkan and left in the test
cache, the device is Mesa's llvmpipe.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from engine_stage import Stage
from greenroom.actors.scheduler.layers import Demand
from greenroom.actors.scheduler.ledger import Capacity
from greenroom.actors.values import BackendFacts, EngineSpec, LayersOn, Loaded, Model
from greenroom.runner.backends.base import Launch, ModelFiles
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.engines.handle import PreparedEngine
from greenroom.runner.models.metadata import read_metadata

pytestmark = [pytest.mark.slow, pytest.mark.real]

MIB = 2**20
SEEN, UNSEEN = {"GGML_VK_VISIBLE_DEVICES": "0"}, {"GGML_VK_VISIBLE_DEVICES": ""}


@pytest.fixture
def server(test_cache: Path) -> Path:
    for found in sorted((test_cache / "llama-cpp-builds" / "builds").glob("*/llama-server")):
        listed = subprocess.run(
            [found, "--list-devices"], env={**os.environ, **SEEN}, capture_output=True, text=True, check=False
        )
        if "Vulkan0" in listed.stdout:
            return found
    pytest.skip("no llama-server with Vulkan: run tests/daemon/test_real_vulkan.py first")


def spec_with(layers: int) -> EngineSpec:
    return EngineSpec(
        engine_id=f"layers-{layers}",
        backend="llama.cpp",
        installation_id="i",
        model_id="m",
        model_ref="m",
        context_size=2048,
        slots=2,
        layers=31,
        placement=(LayersOn(device="llvmpipe", layers=layers),),
    )


def loaded(stage: Stage, server: Path, model: Path, spec: EngineSpec, env: dict[str, str]) -> Loaded:
    def prepare(spec: EngineSpec, socket: Path) -> PreparedEngine:
        files = ModelFiles(path=model, format="gguf", name="m", layers=31)
        launch = Launch(spec=spec, root=Path("/"), python=Path("/"), model=files, socket=socket, built=server)
        command = LlamaCpp().command(launch)
        return PreparedEngine(
            command=type(command)(command.argv, {**command.env, **env}), readiness=LlamaCpp.readiness
        )

    host = stage.host(prepare=prepare, loaded=lambda _, log: LlamaCpp().loaded(log))
    host.start(spec)
    told, planned = stage.heard.wait("loaded", bound=120)
    assert planned == spec.on_devices
    stage.heard.wait("ready", bound=120)
    host.stop(spec.engine_id)
    stage.heard.wait("exited", bound=60)
    assert isinstance(told, Loaded)
    return told


@pytest.mark.parametrize("layers", [5, 31])
def test_llama_cpp_loads_the_layers_that_were_placed_and_takes_what_was_reserved(
    stage: Stage, server: Path, smollm2_gguf: Path, layers: int
) -> None:
    spec = spec_with(layers)
    told = loaded(stage, server, smollm2_gguf, spec, SEEN)
    assert (told.layers, told.total, told.reason) == (layers, 31, "")
    header = read_metadata([smollm2_gguf])
    model = Model(
        id="m",
        size=smollm2_gguf.stat().st_size,
        kv_bytes_per_token=header.kv_bytes_per_token,
        context_length=header.context_length,
        layers=header.layers,
    )
    facts = BackendFacts(
        name="llama.cpp",
        deferred=False,
        formats=("gguf",),
        modes=("completion",),
        preference=1,
        install_preference=1,
        device_overhead=LlamaCpp.device_overhead,
    )
    (reserved,) = Demand(model, 2048, Capacity(slots=2), facts).divided(spec.placement).devices
    assert abs(reserved.total - told.size) < max(0.05 * told.size, 20 * MIB)


def test_llama_cpp_without_its_device_says_that_it_uses_none(
    stage: Stage, server: Path, smollm2_gguf: Path
) -> None:
    told = loaded(stage, server, smollm2_gguf, spec_with(31), UNSEEN)
    assert told.layers == 0
    assert told.reason.startswith("no usable GPU found")
