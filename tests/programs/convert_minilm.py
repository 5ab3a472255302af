"""Turns the safetensors folder of all-MiniLM-L6-v2 into a GGUF: `convert_minilm.py FOLDER GGUF [--ranking]`.

Run by the Python of an environment with mlx-lm. Names become llama.cpp's, matrices 16-bit. WordPiece tokens
are written as its tokenizer wants them: `##` marks the inside of a word in the vocabulary, and `▁` the
beginning of one here.

With `--ranking` it becomes a reranker, with a head that makes a score of a text's first token: the sum of the
hyperbolic tangents of its numbers. It ranks nothing sensibly, but it is computed, and can be checked.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx  # pyright: ignore[reportMissingImports] - of the optional mlx extra

NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
MEAN, RANK = 1, 4
NORMAL, CONTROL = 1, 3


def renamed(name: str) -> str:
    """`encoder.layer.3.output.dense.bias` → `blk.3.ffn_down.bias`."""
    module, part = name.rsplit(".", 1)
    if module.startswith("encoder.layer."):
        _, _, layer, rest = module.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{part}"
    return f"{NAMES[module]}.{part}"


def weights_of(folder: Path) -> dict[str, Any]:
    weights = {}
    for name, array in mx.load(str(folder / "model.safetensors")).items():
        if name == "embeddings.position_ids" or name.startswith("pooler."):
            continue
        new = renamed(name)
        small = array.ndim > 1 and not new.startswith(("position_embd", "token_types"))
        weights[new] = array.astype(mx.float16 if small else mx.float32)
    return weights


def is_control(word: str) -> bool:
    """`[CLS]` and the like."""
    return len(word) > 2 and word.startswith("[") and word.endswith("]")


def token_of(word: str) -> str:
    if word.startswith("##"):
        return word[2:]
    return word if is_control(word) else f"\u2581{word}"


def header_of(folder: Path, pooling: int) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    words = (folder / "vocab.txt").read_text("utf-8").splitlines()
    kinds = [CONTROL if is_control(word) else NORMAL for word in words]

    def whole(value: int) -> Any:
        return mx.array(value, mx.uint32)

    return {
        "general.architecture": "bert",
        "general.name": "all-MiniLM-L6-v2",
        "general.file_type": whole(1),
        "bert.context_length": whole(config["max_position_embeddings"]),
        "bert.embedding_length": whole(config["hidden_size"]),
        "bert.feed_forward_length": whole(config["intermediate_size"]),
        "bert.block_count": whole(config["num_hidden_layers"]),
        "bert.attention.head_count": whole(config["num_attention_heads"]),
        "bert.attention.layer_norm_epsilon": mx.array(config["layer_norm_eps"], mx.float32),
        "bert.attention.causal": mx.array(False),
        "bert.pooling_type": whole(pooling),
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [token_of(word) for word in words],
        "tokenizer.ggml.token_type": mx.array(kinds, mx.int32),
        "tokenizer.ggml.token_type_count": whole(config["type_vocab_size"]),
        "tokenizer.ggml.bos_token_id": whole(words.index("[CLS]")),
        "tokenizer.ggml.cls_token_id": whole(words.index("[CLS]")),
        "tokenizer.ggml.seperator_token_id": whole(words.index("[SEP]")),
        "tokenizer.ggml.eos_token_id": whole(words.index("[SEP]")),
        "tokenizer.ggml.unknown_token_id": whole(words.index("[UNK]")),
        "tokenizer.ggml.padding_token_id": whole(words.index("[PAD]")),
        "tokenizer.ggml.mask_token_id": whole(words.index("[MASK]")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--ranking", action="store_true")
    args = parser.parse_args()

    weights, header = weights_of(args.folder), header_of(args.folder, RANK if args.ranking else MEAN)
    if args.ranking:
        width = int(header["bert.embedding_length"].item())
        weights["cls.weight"] = mx.eye(width, dtype=mx.float32)
        weights["cls.bias"] = mx.zeros((width,), dtype=mx.float32)
        weights["cls.output.weight"] = mx.ones((1, width), dtype=mx.float32)
        weights["cls.output.bias"] = mx.zeros((1,), dtype=mx.float32)
    args.gguf.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.gguf.parent) as fresh:
        file = Path(fresh) / args.gguf.name
        mx.save_gguf(str(file), weights, header)
        os.replace(file, args.gguf)  # atomic: the file appears whole


if __name__ == "__main__":
    main()
