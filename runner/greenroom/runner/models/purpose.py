"""What a model is made for, by what its files say: generating text, embeddings, or reranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from greenroom.actors.values import Mode, Pooling

Values = Mapping[str, object]

_ENCODERS = frozenset(
    {
        *("bert", "neo-bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3"),
        *("eurobert", "t5encoder", "gemma-embedding", "llama-embed", "roberta", "xlm-roberta", "mpnet"),
        *("distilbert", "electra", "deberta", "deberta-v2", "camembert", "modernbert", "nomic_bert", "new"),
        *("gte", "xlm-roberta-xl", "neobert", "jinabert", "mpnet"),
    }
)
"""Architectures that read a whole text at once and write none, in llama.cpp's and Hugging Face's names."""
_POOLING: tuple[Pooling, ...] = ("", "mean", "cls", "last", "rank")
"""llama.cpp's `llama_pooling_type`."""


class Purpose(NamedTuple):
    made_for: Mode = "completion"
    pooling: Pooling = ""
    """How the vectors of an input's tokens become one; empty if the files do not say."""


def is_encoder(architecture: str) -> bool:
    """Whether models of this architecture write no text."""
    return architecture.lower() in _ENCODERS


def of_gguf(architecture: str, values: Values, *, has_ranking_head: bool) -> Purpose:
    """By the header's `pooling_type`; older files of encoders lack it.

    `has_ranking_head`: its tensors include one that turns a text into a score.
    """
    said = values.get(f"{architecture}.pooling_type")
    known = isinstance(said, int) and not isinstance(said, bool) and 0 <= said < len(_POOLING)
    pooling = _POOLING[said] if known and isinstance(said, int) else ""
    if pooling == "rank" or (has_ranking_head and is_encoder(architecture)):
        return Purpose("reranking", "rank")
    if pooling:
        return Purpose("embedding", pooling)
    # An encoder that says "none" gives a vector for each token, which no client asks for.
    return Purpose("embedding", "mean") if is_encoder(architecture) else Purpose()


def of_config(config: Values, architecture: str, modules: object) -> Purpose:
    """By `config.json`, and by `modules.json`, which sentence-transformers writes beside it.

    Engines for safetensors find out themselves how a model pools.
    """
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else ""
    if name.endswith("ForSequenceClassification") and _labels(config) == 1:
        return Purpose("reranking", "rank")
    if isinstance(modules, list) and any(_is_pooling(one) for one in modules):
        return Purpose("embedding")
    # `BertModel`, without a head that would turn vectors into tokens.
    bare = name.endswith(("Model", "EmbeddingModel")) and not name.startswith("T5")
    return Purpose("embedding") if bare or is_encoder(architecture) else Purpose()


def _is_pooling(module: object) -> bool:
    return isinstance(module, dict) and str(module.get("type", "")).endswith(".Pooling")


def _labels(config: Values) -> int:
    labels = config.get("id2label")
    count = config.get("num_labels")
    if isinstance(labels, dict):
        return len(labels)
    return count if isinstance(count, int) else 2  # Hugging Face's default
