"""llama.cpp is started with the layers that were placed, and what it says about them is understood.

The logs are those of llama-server 11434 with SmolLM2 on software Vulkan, and of reports about other cards.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from greenroom.actors.values import EngineSpec, LayersOn, Loaded
from greenroom.runner.backends.base import Launch, ModelFiles
from greenroom.runner.backends.flags import without
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.llama_cpp_log import loaded

MIB = 2**20
PARTLY = """
0.00.691.863 I llama_prepare_model_devices: using device Vulkan0 (llvmpipe (LLVM 15.0.6, 256 bits))
0.00.923.423 I load_tensors: offloading output layer to GPU
0.00.923.435 I load_tensors: offloading 4 repeating layers to GPU
0.00.923.436 I load_tensors: offloaded 5/31 layers to GPU
0.00.923.442 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
0.00.923.443 I load_tensors:      Vulkan0 model buffer size =    37.14 MiB
0.00.985.162 I llama_context: Vulkan_Host  output buffer size =     0.38 MiB
0.00.985.243 I llama_kv_cache:        CPU KV buffer size =    78.00 MiB
0.01.176.128 I llama_kv_cache:    Vulkan0 KV buffer size =    12.00 MiB
0.01.219.577 I sched_reserve:    Vulkan0 compute buffer size =    17.75 MiB
0.01.219.597 I sched_reserve: Vulkan_Host compute buffer size =     6.52 MiB
"""
NO_DEVICE = """
warning: no usable GPU found, --gpu-layers option will be ignored
warning: one possible reason is that llama.cpp was compiled without GPU support
0.00.999.875 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
0.01.000.756 I llama_context:        CPU  output buffer size =     0.38 MiB
0.01.000.838 I llama_kv_cache:        CPU KV buffer size =    90.00 MiB
0.01.189.364 I sched_reserve:        CPU compute buffer size =    16.64 MiB
"""
TWO_CARDS = """
load_tensors: offloading 61 repeating layers to GPU
load_tensors: offloaded 62/62 layers to GPU
load_tensors:        CUDA0 model buffer size = 48928.09 MiB
load_tensors:        CUDA1 model buffer size = 70752.48 MiB
load_tensors:   CPU_Mapped model buffer size =   497.11 MiB
llama_kv_cache:      CUDA0 KV buffer size =   379.23 MiB
llama_kv_cache:      CUDA1 KV buffer size =    82.44 MiB
llama_context:  CUDA_Host  output buffer size =     0.99 MiB
sched_reserve:      CUDA0 compute buffer size =   258.50 MiB
sched_reserve:  CUDA_Host compute buffer size =    24.01 MiB
"""
DRIVER_GONE = """
ggml_cuda_init: failed to initialize CUDA: forward compatibility was attempted on non supported HW
load_tensors: offloading 29 repeating layers to GPU
load_tensors: offloaded 31/31 layers to GPU
load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
"""


def test_layers_on_devices_and_their_memory_are_read_from_the_log() -> None:
    assert loaded(PARTLY, 0) == Loaded(layers=5, total=31, size=int((37.14 + 12 + 17.75) * MIB))
    two = loaded(TWO_CARDS, 300 * MIB)
    assert two is not None
    assert (two.layers, two.total) == (62, 62)
    assert two.size == int((48928.09 + 70752.48 + 379.23 + 82.44 + 258.50) * MIB) + 600 * MIB


def test_a_device_that_is_not_used_is_noticed_whatever_the_engine_calls_offloaded() -> None:
    none = loaded(NO_DEVICE, 300 * MIB)
    assert none is not None
    assert (none.layers, none.size) == (0, 0)
    assert none.reason == "no usable GPU found, --gpu-layers option will be ignored"
    gone = loaded(DRIVER_GONE, 0)
    assert gone is not None
    assert (gone.layers, gone.total) == (0, 31)
    assert "forward compatibility was attempted" in gone.reason


def test_an_engine_that_says_nothing_of_its_buffers_is_not_judged() -> None:
    assert loaded("", 0) is None
    assert loaded("0.06.165.962 I srv          init: model loaded", 0) is None


def argv(*placement: tuple[str, int], layers: int = 31, counted: bool = True, **more: object) -> list[str]:
    spec = EngineSpec(
        engine_id="e",
        backend="llama.cpp",
        installation_id="i",
        model_id="m",
        model_ref="m",
        layers=layers,
        placement=tuple(LayersOn(device=device, layers=count) for device, count in placement),
        flags=("-ngl", "12", "--temp", "0"),
    )
    model = ModelFiles(path=Path("m.gguf"), format="gguf", name="m", layers=layers if counted else 0)
    launch = Launch(spec=spec, root=Path("/"), python=Path("/py"), model=model, socket=Path("/s"))
    return list(LlamaCpp().command(replace(launch, **more)).argv)  # type: ignore[arg-type]


def value_of(words: list[str], option: str) -> list[str]:
    return [after for word, after in pairwise(words) if word == option]


def test_an_engine_gets_as_many_layers_as_were_placed_on_its_devices() -> None:
    one = argv(("GPU-0", 28))
    assert value_of(one, "-ngl") == ["28"]
    assert (value_of(one, "--split-mode"), value_of(one, "--main-gpu")) == (["none"], ["0"])
    two = argv(("GPU-1", 11), ("GPU-0", 20))
    assert (value_of(two, "-ngl"), value_of(two, "--tensor-split")) == (["31"], ["11,20"])
    none = argv()
    assert (value_of(none, "-ngl"), value_of(none, "--split-mode")) == (["0"], [])
    # What the user asked for was heeded when the layers were placed.
    assert value_of(one, "--temp") == ["0"]


def test_all_layers_of_a_model_whose_layers_could_not_be_counted_are_all() -> None:
    assert value_of(argv(("GPU-0", 17), layers=17, counted=False), "-ngl") == ["999"]
    assert value_of(argv(("GPU-0", 16), layers=17, counted=False), "-ngl") == ["16"]


def test_a_program_whose_devices_are_not_known_uses_what_there_is_and_heeds_the_users_flags() -> None:
    assert value_of(argv(layers=0, binary=Path("/usr/bin/llama-server")), "-ngl") == ["999", "12"]


def test_a_compiled_program_is_told_to_say_what_it_puts_where() -> None:
    assert value_of(argv(("GPU-0", 5), built=Path("/b/llama-server")), "--verbosity") == ["4"]
    assert not value_of(argv(built=Path("/b/llama-server")), "--verbosity")


def test_flags_are_left_out_with_their_values() -> None:
    assert without(("-ngl", "5", "-x", "--gpu-layers=7", "y"), ("-ngl", "--gpu-layers")) == ("-x", "y")
