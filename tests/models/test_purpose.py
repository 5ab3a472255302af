"""What models are made for, by their headers and configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.models.gguf import read_header
from greenroom.runner.models.metadata import read_metadata
from greenroom.runner.models.purpose import of_config, of_gguf

POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}


@pytest.mark.parametrize(
    ("architecture", "pooling", "has_head", "purpose"),
    [
        ("llama", None, False, ("completion", "")),
        ("llama", 0, False, ("completion", "")),
        ("qwen3", 3, False, ("embedding", "last")),
        ("bert", 1, False, ("embedding", "mean")),
        ("nomic-bert", 2, False, ("embedding", "cls")),
        ("bert", None, False, ("embedding", "mean")),
        ("bert", 4, False, ("reranking", "rank")),
        ("qwen3", 4, True, ("reranking", "rank")),
        ("bert", None, True, ("reranking", "rank")),
        ("bert", 99, False, ("embedding", "mean")),
        ("llama", "3", False, ("completion", "")),
    ],
)
def test_a_ggufs_header_says_what_it_is_made_for(
    architecture: str, pooling: Any, has_head: bool, purpose: tuple[str, str]
) -> None:
    values = {} if pooling is None else {f"{architecture}.pooling_type": pooling}
    assert of_gguf(architecture, values, has_ranking_head=has_head) == purpose


def test_a_gguf_with_a_matrix_for_scores_is_a_reranker(tmp_path: Any, gguf: Any) -> None:
    file = tmp_path / "old.gguf"
    keys = {"general.architecture": "bert", "bert.embedding_length": 64, "bert.block_count": 1}
    file.write_bytes(gguf(keys, tensors=[("cls.output.weight", (64, 1), 1, 0)]))
    assert read_header(file).weights.has_ranking_head
    metadata = read_metadata([file])
    assert metadata.purpose == ("reranking", "rank")
    assert metadata.kv_bytes_per_token == 0, "an encoder has no cache"


def config(name: Any, **more: Any) -> dict[str, Any]:
    return {"architectures": [name], **more}


@pytest.mark.parametrize(
    ("architecture", "settings", "modules", "purpose"),
    [
        ("llama", config("LlamaForCausalLM"), None, ("completion", "")),
        ("bert", config("BertModel"), None, ("embedding", "")),
        ("qwen3", config("Qwen3Model"), None, ("embedding", "")),
        ("qwen3", config("Qwen3ForCausalLM"), [POOLING], ("embedding", "")),
        ("qwen3", config("Qwen3ForCausalLM"), [{"type": "x.Transformer"}, 5], ("completion", "")),
        ("xlm-roberta", config("XLMRobertaForMaskedLM"), None, ("embedding", "")),
        ("bert", config("BertForSequenceClassification", id2label={"0": "x"}), None, ("reranking", "rank")),
        ("bert", config("BertForSequenceClassification", num_labels=1), [POOLING], ("reranking", "rank")),
        ("llama", config("LlamaForSequenceClassification"), None, ("completion", "")),
        ("llama", config(7), "x", ("completion", "")),
        ("llama", {}, None, ("completion", "")),
    ],
)
def test_a_configuration_says_what_it_is_made_for(
    architecture: str, settings: dict[str, Any], modules: Any, purpose: tuple[str, str]
) -> None:
    assert of_config(settings, architecture, modules) == purpose


@pytest.mark.parametrize("modules", [b"[", b"\xff", b'[{"type": 5}]'])
def test_a_list_of_modules_that_cannot_be_read_changes_nothing(
    tmp_path: Path, model_folder: Any, modules: bytes
) -> None:
    folder = model_folder(tmp_path / "model", architectures=["LlamaForCausalLM"])
    (folder / "modules.json").write_bytes(modules)
    assert read_metadata(sorted(folder.iterdir())).purpose == ("completion", "")


def test_the_configuration_of_a_module_is_not_taken_for_the_models(tmp_path: Path, model_folder: Any) -> None:
    folder = model_folder(tmp_path / "model", architectures=["BertModel"], model_type="bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    assert files[0].parent.name == "1_Pooling"
    assert read_metadata(files).architecture == "bert"


def test_a_real_folder_of_sentence_transformers_is_an_embedding_model(minilm_folder: Path) -> None:
    metadata = read_metadata([one for one in sorted(minilm_folder.iterdir()) if one.is_file()])
    assert (metadata.purpose.made_for, metadata.architecture) == ("embedding", "bert")
    assert metadata.context_length == 512
