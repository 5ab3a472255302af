"""A name that is not there is answered with those that may have been meant."""

from __future__ import annotations

import pytest

from greenroom.runner.models.near_names import did_you_mean, near

LLAMA = "huggingface.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M"
TAGS = ("docker.io/ai/smollm2:latest", "docker.io/ai/smollm2:135M-Q4_0", LLAMA, "docker.io/ai/qwen3:4B")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("smolm2", ["smollm2"]),
        ("smollm2:1.7b", ["smollm2", "smollm2:135M-Q4_0"]),
        ("hf.co/unsloth/SmolLM2-GGUF", ["smollm2", "smollm2:135M-Q4_0"]),
        ("registry.ollama.ai/library/smollm", ["smollm2", "smollm2:135M-Q4_0"]),
        ("llama3.2:1b", [LLAMA]),
        ("ai/llama3.2", [LLAMA]),
        ("qwen3:latest", ["qwen3:4B"]),
        ("phi4", []),
        ("", []),
        ("x" * 4096, []),
    ],
)
def test_the_closest_names_are_offered(asked: str, meant: list[str]) -> None:
    assert near(asked, TAGS) == meant


def test_names_are_offered_as_a_question() -> None:
    assert did_you_mean("smolm2", TAGS) == "Did you mean smollm2?"
    assert did_you_mean("smollm", TAGS) == "Did you mean smollm2 or smollm2:135M-Q4_0?"
    assert did_you_mean("phi4", TAGS) == ""
