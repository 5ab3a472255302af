"""Turns the SmolLM2 GGUF into a safetensors folder: `convert_smollm2.py GGUF FOLDER [--dequantise]`.

Run by the Python of an environment with mlx-lm. MLX reads the GGUF's blocks as they are (embedding 8-bit,
the rest 4-bit in groups of 32), so the result is the very same model, quantised the MLX way; with
`--dequantise` it is plain 16-bit, for backends that cannot read that. Names become Hugging Face's, and the
rows of q and k are put back into the order that llama.cpp's converter changed. Scales and norms of the
quantised one are 32-bit: MLX's CPU build is forty times slower with 16-bit ones.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx  # pyright: ignore[reportMissingImports] - of the optional mlx extra

GROUP, BITS, EMBEDDING_BITS = 32, 4, 8

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def renamed(name: str) -> str:
    """`blk.3.attn_q.scales` → `model.layers.3.self_attn.q_proj.scales`."""
    if name.startswith("blk."):
        _, layer, module, part = name.split(".")
        return f"model.layers.{layer}.{NAMES[module]}.{part}"
    module, part = name.rsplit(".", 1)
    return f"model.{ {'token_embd': 'embed_tokens', 'output_norm': 'norm'}[module] }.{part}"


def unpermuted(rows: mx.array, heads: int) -> mx.array:
    """llama.cpp interleaves the two halves of each head's rows; whole rows move, so packed ones too."""
    shape = rows.shape
    return rows.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def weights_of(gguf: dict[str, Any], heads: int, kv_heads: int, dequantise: bool) -> dict[str, Any]:
    """All tensors under their Hugging Face names."""
    dtype = mx.float16 if dequantise else mx.float32
    weights = {}
    for name, array in gguf.items():
        if ".attn_q." in name:
            rows = unpermuted(array, heads)
        elif ".attn_k." in name:
            rows = unpermuted(array, kv_heads)
        else:
            rows = array
        weights[renamed(name)] = rows if rows.dtype == mx.uint32 else rows.astype(dtype)
    if not dequantise:
        return weights
    plain = {}
    for name, array in weights.items():
        stem, part = name.rsplit(".", 1)
        if f"{stem}.scales" not in weights:
            plain[name] = array
        elif part == "weight":
            bits = EMBEDDING_BITS if "embed" in stem else BITS
            scales, biases = weights[f"{stem}.scales"], weights[f"{stem}.biases"]
            plain[name] = mx.dequantize(array, scales, biases, group_size=GROUP, bits=bits)
    return plain


def config_of(meta: dict[str, Any], dequantise: bool) -> dict[str, Any]:
    """`config.json`."""

    def number(key: str) -> float:
        value: float = meta[key].item()  # a whole number stays one: the engine needs it
        return value

    quantization: dict[str, Any] = {"group_size": GROUP, "bits": BITS}
    quantization["model.embed_tokens"] = {"group_size": GROUP, "bits": EMBEDDING_BITS}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": number("llama.embedding_length"),
        "intermediate_size": number("llama.feed_forward_length"),
        "num_hidden_layers": number("llama.block_count"),
        "num_attention_heads": number("llama.attention.head_count"),
        "num_key_value_heads": number("llama.attention.head_count_kv"),
        "max_position_embeddings": number("llama.context_length"),
        "rms_norm_eps": round(number("llama.attention.layer_norm_rms_epsilon"), 8),
        "rope_theta": number("llama.rope.freq_base"),
        "vocab_size": number("llama.vocab_size"),
        "bos_token_id": number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": number("tokenizer.ggml.eos_token_id"),
        "pad_token_id": number("tokenizer.ggml.padding_token_id"),
        "tie_word_embeddings": True,
        "attention_bias": False,
        "torch_dtype": "float16" if dequantise else "float32",
    }
    return (
        config if dequantise else config | {"quantization": quantization, "quantization_config": quantization}
    )


def tokenizer_of(meta: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer.json`: byte-level BPE; the pre-tokenizer is the one llama.cpp calls `smollm`."""
    if (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise SystemExit("This is not SmolLM2's tokenizer.")
    tokens = meta["tokenizer.ggml.tokens"]
    control = [i for i, kind in enumerate(meta["tokenizer.ggml.token_type"].tolist()) if kind == 3]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in control],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": meta["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config_of(meta: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer_config.json`, with the chat template."""
    tokens = meta["tokenizer.ggml.tokens"]

    def token(kind: str) -> str:
        return str(tokens[meta[f"tokenizer.ggml.{kind}_token_id"].item()])

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"].item(),
        "chat_template": meta["tokenizer.chat_template"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dequantise", action="store_true")
    args = parser.parse_args()

    gguf, meta = mx.load(str(args.gguf), return_metadata=True)
    heads = meta["llama.attention.head_count"].item()
    kv_heads = meta["llama.attention.head_count_kv"].item()
    weights = weights_of(gguf, heads, kv_heads, args.dequantise)
    texts = {
        "config.json": config_of(meta, args.dequantise),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "tokenizer.json": tokenizer_of(meta),
        "tokenizer_config.json": tokenizer_config_of(meta),
    }

    args.folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=args.folder.parent))
    try:
        layout = {"format": "pt" if args.dequantise else "mlx"}
        mx.save_safetensors(str(fresh / "model.safetensors"), weights, metadata=layout)
        for name, content in texts.items():
            (fresh / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        fresh.chmod(0o755)
        try:
            os.rename(fresh, args.folder)  # atomic: the folder appears complete
        except OSError:
            if not args.folder.is_dir():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


if __name__ == "__main__":
    main()
