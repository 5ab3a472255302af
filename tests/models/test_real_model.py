"""The real model in both formats: what its files say, and that it says something."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from greenroom.runner.models.metadata import read_metadata

SPEAK = """
import sys
from mlx_lm import load, generate
from mlx_lm.sample_utils import make_sampler
model, tokenizer = load(sys.argv[1])
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
)
text = "It's 2024 times naïve — 你好!\\n\\n  x"
assert tokenizer.decode(tokenizer.encode(text)) == text
print(generate(model, tokenizer, prompt, max_tokens=12, sampler=make_sampler(0.0)))
"""


def test_the_gguf_says_what_it_is(smollm2_gguf: Path) -> None:
    metadata = read_metadata([smollm2_gguf])
    assert metadata.format == "gguf"
    assert metadata.architecture == "llama"
    assert metadata.parameters == "134.52M"
    assert metadata.quantization == "Q4_1"
    assert metadata.context_length == 8192
    # 2 (key and value) * 30 layers * 3 heads * 64 elements * 2 bytes
    assert metadata.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2
    assert metadata.chat_template
    layers = metadata.layers
    assert (len(layers.weights), set(layers.cache)) == (30, {2 * 3 * 64 * 2})
    # Its input is the output's matrix too.
    assert layers.output - layers.input == 576 * 4
    assert (
        0.95 * smollm2_gguf.stat().st_size < sum(layers.weights) + layers.output < smollm2_gguf.stat().st_size
    )
    assert layers.logits == 49_152 * 4


@pytest.mark.real
def test_the_converted_model_says_the_same(smollm2_gguf: Path, smollm2_mlx: Path) -> None:
    gguf, mlx = read_metadata([smollm2_gguf]), read_metadata(sorted(smollm2_mlx.iterdir()))
    assert mlx.format == "safetensors-mlx"
    assert mlx.quantization == "4bit"
    assert mlx.parameter_count == gguf.parameter_count
    assert (mlx.architecture, mlx.context_length, mlx.kv_bytes_per_token, mlx.chat_template) == (
        gguf.architecture,
        gguf.context_length,
        gguf.kv_bytes_per_token,
        gguf.chat_template,
    )


@pytest.mark.real
@pytest.mark.slow
def test_the_converted_model_answers_under_mlx(smollm2_mlx: Path, mlx_python: Path) -> None:
    done = subprocess.run([mlx_python, "-c", SPEAK, smollm2_mlx], capture_output=True, text=True, timeout=100)
    assert "Paris" in done.stdout, done.stderr
