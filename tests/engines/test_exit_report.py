"""From what a keeper wrote to the one sentence a client reads."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from greenroom.actors.values import EngineSpec, LayersOn
from greenroom.runner.engines.exit_report import cause_of, engine_exit

SPEC = EngineSpec(engine_id="e-1", backend="mlx", installation_id="i", model_id="m", model_ref="ai/smollm2")


def sentence(end: Any, *, expected: bool = False, was_ready: bool = True, reason: str = "") -> str:
    return engine_exit(end, SPEC, expected=expected, was_ready=was_ready, reason=reason).summary


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "llama_model_load: error loading model: unknown model architecture: 'xyz'",
            "this version does not support the architecture xyz",
        ),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "it ran out of memory"),
        (
            "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9",
            "it could not allocate the memory it needs",
        ),
        (
            "gguf_init_from_file_impl: invalid magic characters: 'this', expected 'GGUF'",
            "the file is not a model it can read",
        ),
        ("ModuleNotFoundError: No module named 'mlx.core'", "its installation has no module mlx.core"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        (
            "0.00.007 E srv  load_model: failed to load model, '/m/x.gguf'",
            "it could not load the model /m/x.gguf",
        ),
        ("ValueError: Model type foo not supported.", "ValueError: Model type foo not supported"),
        ("everything is fine", ""),
    ],
)
def test_a_known_complaint_becomes_a_cause(line: str, cause: str) -> None:
    assert cause_of(["starting", line, "bye"]) == cause


# ruff: noqa: E501 - lines as they were written
# What llama.cpp and our launcher have really written, last lines of failed loads.
RECORDED = {
    "a broken chat template": """\
0.02.713.270 I srv    load_model: initializing, n_slots = 4, n_ctx_slot = 8192, kv_unified = 'true'
0.02.713.681 E common_chat_templates_init: error: parser: Parser Error: Expected }} (Got })
...{% for m in messages %}{{ m.content }...
                                       ^
0.02.713.715 E common_chat_templates_init: failed to initialize chat template
0.02.713.742 E common_chat_templates_init: please consider disabling jinja via --no-jinja, or using another chat template
0.02.713.789 E srv          init: init: chat template parsing error: std::exception
0.02.713.816 E srv          init: init: please consider disabling jinja via --no-jinja, or use a custom chat template
0.02.713.872 I srv    operator(): operator(): cleaning up before exit...
0.02.714.295 E srv          init: exiting due to model loading error
error loading model SmolLM2-135M-Instruct.Q4_1.gguf: Failed to init server, please check the input params.""",
    "a projector that is none": """\
0.02.839.547 E gguf_init_from_reader: invalid magic characters: 'not ', expected 'GGUF'
0.02.839.619 E clip_init: failed to load model 'bad.gguf': clip_model_loader: failed to load CLIP model from bad.gguf.
0.02.839.628 E mtmd_init_from_file: error: Failed to load CLIP model from bad.gguf
0.02.839.630 E srv    load_model: failed to load multimodal model, 'bad.gguf'
0.02.844.311 E srv          init: exiting due to model loading error
error loading model SmolLM2-135M-Instruct.Q4_1.gguf: Failed to init server, please check the input params.""",
    "a file that was cut": """\
0.00.003.074 E gguf_init_from_reader: failed to read key-value pairs
0.00.003.257 E llama_model_load: error loading model: llama_model_loader: failed to load model from cut.gguf
0.00.003.379 E srv    load_model: failed to load model, 'cut.gguf'
0.00.003.802 E srv          init: exiting due to model loading error
error loading model cut.gguf: Failed to init server, please check the input params.""",
    "a cache that needs flash attention": """\
0.00.415.866 E llama_init_from_model: quantized V cache requires flash_attn to be enabled
0.00.415.977 E srv    load_model: failed to create_context with model '/m/x.gguf'
0.00.416.404 E srv          init: exiting due to model loading error
error loading model SmolLM2-135M-Instruct.Q4_1.gguf: Failed to init server, please check the input params.""",
    "a grammar that is none": """\
parse: error parsing grammar: expecting ')' at
root ::= (
terminate called after throwing an instance of 'std::runtime_error'
  what():  failed to parse grammar""",
    "an assertion": """\
/workspace/thirdparty/llama.cpp/src/llama-context.cpp:2529: GGML_ASSERT(n_outputs >= 1) failed""",
    "a socket that cannot be": """\
0.00.000.646 E srv         start: couldn't bind HTTP server socket, hostname: /tmp/s.sock, port: 0
0.00.000.711 E srv          init: exiting due to HTTP server error
error loading model SmolLM2-135M-Instruct.Q4_1.gguf: Failed to init server, please check the input params.""",
    "a flag": "error: unusable flag: --cache-type-k cannot be 'q99'; it takes f32, f16, q8_0 or q4_0",
}


@pytest.mark.parametrize(
    ("what", "reason", "cure"),
    [
        (
            "a broken chat template",
            "chat template cannot be read (Parser Error: Expected }}",
            "--chat-template FILE",
        ),
        (
            "a projector that is none",
            "projector (mmproj) is damaged or belongs to another model",
            "--mmproj FILE",
        ),
        ("a file that was cut", "the model file is truncated or damaged", "pull it again"),
        ("a cache that needs flash attention", "--cache-type-v", "--flash-attn on"),
        ("a grammar that is none", "--grammar cannot be read", "change the flag"),
        ("an assertion", "GGML_ASSERT(n_outputs >= 1) failed", ""),
        ("a socket that cannot be", "its socket could not be created", ""),
        ("a flag", "--cache-type-k cannot be 'q99'", "it takes f32, f16, q8_0 or q4_0"),
    ],
)
def test_a_failed_load_says_the_reason_and_the_remedy_in_one_sentence(
    what: str, reason: str, cure: str
) -> None:
    said = sentence({"code": 1, "last_lines": RECORDED[what].splitlines()}, was_ready=False)
    assert reason in said
    assert cure in said
    assert "check the input params" not in said
    assert "does not know the argument" not in said


def test_the_end_of_a_traceback_is_preferred_to_a_line_that_mentions_an_error() -> None:
    lines = ["Traceback (most recent call last):", "KeyError: 'x'", "worker failed, see above"]
    assert cause_of(lines) == "KeyError: 'x'"


def test_a_stop_that_was_asked_for_is_no_failure() -> None:
    end = {"code": 0, "stop_reason": "a stop was requested", "last_lines": ["error: something old"]}
    assert sentence(end, expected=True) == "The mlx engine for ai/smollm2 was stopped."
    assert sentence(end, expected=True, reason="idle for 5 min").endswith("was stopped (idle for 5 min).")


def test_a_kill_for_want_of_memory_says_how_much_it_had() -> None:
    end = {"signal": "SIGKILL", "out_of_memory": True, "peak_memory": 3 * 2**30}
    assert sentence(end) == (
        "The mlx engine for ai/smollm2 was killed by SIGKILL: "
        "the system ran out of memory (it had used 3.22 GB)."
    )


def test_an_engine_the_system_killed_while_it_served_is_no_fault_of_its_model() -> None:
    end = engine_exit({"signal": "SIGKILL", "out_of_memory": True}, SPEC, expected=False, was_ready=True)
    assert end.failure is not None
    assert (end.failure.code, end.failure.blame, end.failure.kind) == (
        "out_of_memory",
        "machine",
        "transient",
    )


def test_an_end_of_our_making_gives_our_reason_and_the_engines_words() -> None:
    end = {"signal": "SIGKILL", "last_lines": ["CUDA error: out of memory"]}
    assert sentence(end, was_ready=False, reason="it said nothing for 60s") == (
        "The mlx engine for ai/smollm2 was ended while it loaded: "
        "it said nothing for 60s; its graphics device had too little free memory."
    )


def test_an_exit_without_a_clue_is_still_explained_in_a_sentence() -> None:
    assert sentence({"code": 7}) == "The mlx engine for ai/smollm2 exited with code 7."
    assert sentence({}) == "The mlx engine for ai/smollm2 has gone."


def test_only_an_engines_own_words_are_kept_once_it_has_served_clients() -> None:
    """Engines print what they are asked, and what is stored is shown to others."""
    own = "/src/ggml.c:1234: GGML_ASSERT(i01 >= 0 && i01 < ne01) failed"
    said = [
        "error: SECRET",
        "ValueError: SECRET",
        "unknown model architecture: 'SECRET'",
        "CUDA error: SECRET 7",
        "GGML_ASSERT(SECRET 'x') failed",
        f"{own} SECRET",
        own,
    ]
    end = {"code": 1, "first_lines": said, "last_lines": said}
    kept = engine_exit(end, SPEC, expected=False, was_ready=True)
    assert (kept.first_lines, kept.last_lines) == ((own,), (own,))
    assert "SECRET" not in kept.summary
    assert kept.summary == f"The mlx engine for ai/smollm2 exited with code 1: {own}."
    again = engine_exit(end, SPEC, expected=False, was_ready=False, served=True)
    assert (again.last_lines, "SECRET" in again.summary) == ((own,), False)
    loading = engine_exit(end, SPEC, expected=False, was_ready=False)
    assert loading.last_lines == tuple(said), "while it loads no client is inside"


@pytest.mark.parametrize(
    "lines",
    [
        (
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 35533.34 MiB on device 0: cudaMalloc failed: out of memory",
            "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
            "llama_model_load_from_file_impl: failed to load model",
        ),
        (
            "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
            "alloc_tensor_range: failed to allocate Vulkan0 buffer of size 38942208",
        ),
    ],
)
def test_a_device_without_enough_free_memory_is_the_machines_fault_while_the_model_loads(
    lines: tuple[str, ...],
) -> None:
    spec = msgspec.structs.replace(SPEC, placement=(LayersOn(device="GPU-0", layers=3),))
    end = {"code": 1, "last_lines": lines}
    report = engine_exit(end, spec, expected=False, was_ready=False)
    assert report.summary == (
        "The mlx engine for ai/smollm2 exited with code 1 while it loaded: its graphics device had too little free "
        "memory."
    )
    assert report.failure is not None
    assert (report.failure.code, report.failure.blame) == ("no_device_memory", "machine")
    # The memory of the machine is another matter, and so is an engine that was given no device.
    ours = (
        "unable to allocate CPU buffer",
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9",
    )
    assert engine_exit({"code": 1, "last_lines": ours}, spec, expected=False, was_ready=False).failure is None
    assert engine_exit(end, SPEC, expected=False, was_ready=False).failure is None


@pytest.mark.parametrize(
    "line",
    [
        "  what():  vk::Queue::submit: ErrorDeviceLost",
        "CUDA error: no CUDA-capable device is detected",
        "ROCm error: no ROCm-capable device is detected",
    ],
)
def test_an_engine_that_lost_its_device_is_not_to_blame_nor_is_its_model(line: str) -> None:
    spec = msgspec.structs.replace(SPEC, device="GPU-0")
    end = {"signal": "SIGABRT", "last_lines": ("a client's words", line)}
    report = engine_exit(end, spec, expected=False, was_ready=True)
    assert report.summary.endswith("was killed by SIGABRT: its graphics device was lost.")
    assert report.failure is not None
    assert (report.failure.code, report.failure.blame) == ("device_lost", "machine")
    assert report.last_lines == (line,)
    assert engine_exit(end, SPEC, expected=False, was_ready=True).failure is None
