"""Which files of a folder are the model."""

from __future__ import annotations

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.models.selection import (
    choose_files,
    choose_from_repository,
    projector_beside,
    quantisation_of,
    with_shards,
)

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


@pytest.mark.parametrize(
    ("name", "beside", "projector"),
    [
        ("m.gguf", ["mmproj-f16.gguf", "mmproj-bf16.gguf"], ["mmproj-f16.gguf"]),
        ("m-Q4_0.gguf", ["m-Q8_0.gguf", "mmproj.gguf"], ["mmproj.gguf"]),
        (SHARDS[1], [SHARDS[0], SHARDS[2], "mmproj-model-f16.gguf"], ["mmproj-model-f16.gguf"]),
        ("m.gguf", ["other.gguf", "mmproj-f16.gguf"], []),
        ("m-Q4_0.gguf", ["other.gguf", "mmproj-m-F16.gguf", "mmproj-other.gguf"], ["mmproj-m-F16.gguf"]),
        ("other.gguf", ["m.gguf", "m-mmproj.gguf"], []),
        ("mmproj.gguf", ["m.gguf"], []),
    ],
)
def test_a_file_brings_the_projector_that_can_be_no_other_models(
    name: str, beside: list[str], projector: list[str]
) -> None:
    assert projector_beside(name, [name, *beside, "README.md"]) == projector


def test_one_shard_brings_the_others_in_their_order() -> None:
    assert with_shards(SHARDS[1], [SHARDS[2], "x.gguf", SHARDS[0], SHARDS[1]]) == SHARDS
    assert with_shards("x.gguf", ["x.gguf", *SHARDS]) == ["x.gguf"]


@pytest.mark.parametrize(
    ("name", "quantisation"),
    [
        ("model-q4_k_m.gguf", "Q4_K_M"),
        ("model.Q4_K_M.gguf", "Q4_K_M"),
        ("model_Q4_K_M.gguf", "Q4_K_M"),
        ("model-Q4_K_M-00001-of-00003.gguf", "Q4_K_M"),
        ("Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0"),
        ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m-bf16.gguf", "BF16"),
        ("m-MXFP4.gguf", "MXFP4"),
        ("model.gguf", ""),
        ("Qwen2.5-7B.gguf", ""),
    ],
)
def test_a_files_name_tells_its_quantisation(name: str, quantisation: str) -> None:
    assert quantisation_of(name) == quantisation


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (["m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"], "", "m-Q4_K_M.gguf"),
        (["m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"], "Q8_0", "m-Q8_0.gguf"),
        (["m-Q2_K.gguf", "m-Q8_0.gguf"], "", "m-Q2_K.gguf"),
        (["m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"], "q4_k_xl", "m-UD-Q4_K_XL.gguf"),
        (["m.gguf", "README.md", "model.safetensors"], "", "m.gguf"),
        (["a-Q4_0.gguf", "mmproj-f16.gguf"], "", "a-Q4_0.gguf"),
    ],
)
def test_the_wanted_quantisation_is_chosen(names: list[str], wanted: str, chosen: str) -> None:
    assert choose_from_repository(names, wanted, "org/m")[0] == chosen


def test_two_models_of_one_quantisation_are_not_taken_for_parts_of_one() -> None:
    with pytest.raises(JobFailed, match="several models"):
        choose_from_repository(["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0", "org/m")


def test_the_modules_of_an_embedding_model_are_part_of_it() -> None:
    names = ["config.json", "model.safetensors", "modules.json", "tokenizer.json"]
    modules = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    others = ["onnx/config.json", "onnx/model.onnx", "2_Dense/pytorch_model.bin", "../1_x/config.json"]
    assert choose_from_repository([*names, *modules, *others], "", "org/model") == [*names, *modules]
    names.remove("modules.json")
    assert choose_from_repository([*names, *modules], "", "org/model") == names
