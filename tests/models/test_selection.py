"""Which files of a folder are the model."""

from __future__ import annotations

import pytest
from greenroom.runner.failures import JobFailed
from greenroom.runner.models.selection import choose_files, with_shards

SHARDS = [f"m-Q4-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["m.gguf", "README.md", ".hidden.gguf"], ["m.gguf"]),
        ([*SHARDS, "notes.txt"], SHARDS),
        (["m.gguf", "mmproj-bf16.gguf", "mmproj-f16.gguf"], ["m.gguf", "mmproj-f16.gguf"]),
        (
            ["model.safetensors", "config.json", "tokenizer.model", "modeling_evil.py", "pytorch_model.bin"],
            ["config.json", "model.safetensors", "tokenizer.model"],
        ),
        (
            ["a.safetensors", "chat_template.jinja", "x.tiktoken"],
            ["a.safetensors", "chat_template.jinja", "x.tiktoken"],
        ),
    ],
)
def test_a_folder_gives_its_one_model(names: list[str], chosen: list[str]) -> None:
    assert sorted(choose_files(names, "it")) == sorted(chosen)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "holds no model"),
        (["a.txt"], "holds no model"),
        (["a.gguf", "b.gguf"], "several models: a.gguf, b.gguf"),
        (["a.gguf", "b.safetensors"], "both GGUF and safetensors"),
        (["mmproj-f16.gguf"], "only a projector"),
        (["model.bin", "config.json"], "can run code"),
        (SHARDS[:2], "1 of them are missing"),
    ],
)
def test_a_folder_that_is_not_clear_is_refused_with_the_reason(names: list[str], reason: str) -> None:
    with pytest.raises(JobFailed, match=reason):
        choose_files(names, "it")


def test_one_shard_brings_the_others_in_their_order() -> None:
    assert with_shards(SHARDS[1], [SHARDS[2], "x.gguf", SHARDS[0], SHARDS[1]]) == SHARDS
    assert with_shards("x.gguf", ["x.gguf", *SHARDS]) == ["x.gguf"]
