"""From what a keeper wrote to the one sentence a client reads."""

from __future__ import annotations

import pytest
from greenroom.actors.facts import EngineSpec
from greenroom.runner.engines.capsule import cause_of, engine_exit

SPEC = EngineSpec(engine_id="e-1", backend="mlx", installation_id="i", model_id="m", model_ref="ai/smollm2")


def sentence(end, *, expected=False, was_ready=True, reason=""):
    return engine_exit(end, SPEC, expected=expected, was_ready=was_ready, reason=reason).summary


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "llama_model_load: error loading model: unknown model architecture: 'xyz'",
            "this version does not know the model architecture xyz",
        ),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "it ran out of memory"),
        (
            "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9",
            "it could not get the memory it needs",
        ),
        (
            "gguf_init_from_file_impl: invalid magic characters: 'this', expected 'GGUF'",
            "the file is not a model it can read",
        ),
        ("ModuleNotFoundError: No module named 'mlx.core'", "its installation lacks the module mlx.core"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        (
            "0.00.007 E srv  load_model: failed to load model, '/m/x.gguf'",
            "it could not load the model /m/x.gguf",
        ),
        ("ValueError: Model type foo not supported.", "ValueError: Model type foo not supported"),
        ("everything is fine", ""),
    ],
)
def test_a_known_complaint_becomes_a_cause(line, cause):
    assert cause_of(["starting", line, "bye"]) == cause


def test_the_end_of_a_traceback_is_preferred_to_a_line_that_mentions_an_error():
    lines = ["Traceback (most recent call last):", "KeyError: 'x'", "worker failed, see above"]
    assert cause_of(lines) == "KeyError: 'x'"


def test_a_stop_that_was_asked_for_is_no_failure():
    end = {"code": 0, "stop_reason": "asked to stop", "last_lines": ["error: something old"]}
    assert sentence(end, expected=True) == "The mlx engine for ai/smollm2 was stopped."
    assert sentence(end, expected=True, reason="idle for 5 min").endswith("was stopped (idle for 5 min).")


def test_a_kill_for_want_of_memory_says_how_much_it_had():
    end = {"signal": "SIGKILL", "out_of_memory": True, "peak_memory": 3 * 2**30}
    assert sentence(end) == (
        "The mlx engine for ai/smollm2 was killed by SIGKILL: "
        "the system ran out of memory (it had used 3072 MiB)."
    )


def test_an_engine_the_system_killed_while_it_served_is_no_fault_of_its_model():
    end = engine_exit({"signal": "SIGKILL", "out_of_memory": True}, SPEC, expected=False, was_ready=True)
    assert end.failure is not None
    assert (end.failure.code, end.failure.blame, end.failure.kind) == (
        "out_of_memory",
        "machine",
        "transient",
    )


def test_an_end_of_our_making_gives_our_reason_and_the_engines_words():
    end = {"signal": "SIGKILL", "last_lines": ["CUDA error: out of memory"]}
    assert sentence(end, was_ready=False, reason="it said nothing for 60 s") == (
        "The mlx engine for ai/smollm2 was ended while it loaded: "
        "it said nothing for 60 s; it ran out of memory."
    )


def test_an_end_with_nothing_to_go_by_is_still_a_sentence():
    assert sentence({"code": 7}) == "The mlx engine for ai/smollm2 exited with code 7."
    assert sentence({}) == "The mlx engine for ai/smollm2 has gone."


def test_of_an_engine_that_served_clients_only_its_own_words_are_kept():
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
    loading = engine_exit(end, SPEC, expected=False, was_ready=False)
    assert loading.last_lines == tuple(said), "while it loads no client is inside"
