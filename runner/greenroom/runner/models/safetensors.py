"""Reads safetensors headers and `config.json` without trusting them.

The header is JSON after an eight-byte length, so msgspec reads it into typed structs, which refuses wrong
shapes while parsing; its length and the number of its entries are bounded before. The `safetensors`
library would add numpy or torch to read no more than this.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Annotated, Any

import msgspec

from greenroom.actors.characters import is_line
from greenroom.actors.values import Medium, ModelFormat
from greenroom.runner.models.errors import from_os_error, not_a_model
from greenroom.runner.models.metadata import Metadata, Readable
from greenroom.runner.models.purpose import of_config
from greenroom.runner.models.templates import of_folder

_HEADER_LIMIT = 16 * 2**20
_COLONS_LIMIT = 600_000
"""An entry has four; the largest models have a hundred thousand entries, in many files."""
_CONFIG_LIMIT = 4 * 2**20

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

# The order in which Docker Model Runner looks.
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_ctx",
    "n_positions",
    "max_length",
    "max_sequence_length",
    "model_max_length",
)


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: Annotated[list[int], msgspec.Meta(max_length=16)]
    data_offsets: tuple[int, int]


def read_files(files: Sequence[Readable]) -> Metadata:
    """The metadata of one model: its safetensors shards and its `config.json`.

    Raises:
        JobFailed: permanent, `not_a_model`.
    """
    weights = [path for path in files if path.suffix.lower() == ".safetensors"]
    if not weights:
        raise not_a_model("There are no weights: neither a .gguf nor a .safetensors file.")
    # Modules of sentence-transformers have their own in folders, so with longer paths.
    configs = [path for path in files if path.name == "config.json"]
    config_file = min(configs, key=lambda one: len(str(one)), default=None)
    if config_file is None:
        raise not_a_model("There is no config.json beside the safetensors files, so nothing can run them.")
    tensors: dict[str, _Tensor] = {}
    for path in weights:
        tensors.update(read_header(path))
    config = _read_config(config_file)
    # Multimodal models have these keys one level deeper.
    text = config.get("text_config")
    inner: dict[str, Any] = {**config, **text} if isinstance(text, dict) else config
    quantization = config.get("quantization")
    mlx = (
        isinstance(quantization, dict) and "group_size" in quantization and "quant_method" not in quantization
    )
    model_format: ModelFormat = "safetensors-mlx" if mlx else "safetensors"
    architecture = _word(config.get("model_type")) or _word(_first(config.get("architectures")))
    return Metadata(
        format=model_format,
        architecture=architecture,
        parameter_count=_parameters(tensors, quantization),
        quantization=_quantization(config, tensors),
        context_length=next((n for key in _CONTEXT_KEYS if (n := _whole(inner.get(key)))), 0),
        kv_bytes_per_token=_kv_bytes(inner),
        reads=_media(config, {path.name for path in files}),
        chat_template=of_folder(files) is not None,
        purpose=of_config(config, architecture, _modules(files)),
        raw={"tensor_count": str(len(tensors)), "file_count": str(len(weights))},
    )


def _media(config: Mapping[str, Any], names: Collection[str]) -> tuple[Medium, ...]:
    """What a model reads that comes with a processor of images or sound."""
    if not {"preprocessor_config.json", "processor_config.json"}.intersection(names):
        return ()
    return ("image", "audio") if isinstance(config.get("audio_config"), dict) else ("image",)


def read_header(path: Readable) -> dict[str, _Tensor]:
    """The tensors of one safetensors file, checked against the file's size.

    Raises:
        JobFailed: permanent, `not_a_model`, for anything malformed, truncated or absurd.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            if len(head) < 8:
                raise not_a_model(f"{path.name} is truncated: it has {size} bytes.")
            (length,) = struct.unpack("<Q", head)
            if length > min(_HEADER_LIMIT, size - 8):
                raise not_a_model(f"{path.name} is not a safetensors file, or it is truncated.")
            header = file.read(length)
    except OSError as error:
        raise from_os_error(error, "reading the model") from error
    # Parsed headers take some hundred bytes per entry: bound their number first.
    if not header.startswith(b"{") or header.count(b":") > _COLONS_LIMIT:
        raise not_a_model(f"{path.name} is not a safetensors file: its header is not a valid JSON object.")
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise not_a_model(f"{path.name} is not a safetensors file: {error}.") from error
    if not tensors:
        raise not_a_model(f"{path.name} holds no weights.")
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        start, stop = tensor.data_offsets
        bits = _BITS.get(tensor.dtype, 0)
        elements = prod(tensor.shape) if all(0 <= n < 2**63 for n in tensor.shape) else -1
        if (
            start != end
            or stop < start
            or elements < 0
            or (bits and -(-elements * bits // 8) != stop - start)
        ):
            raise not_a_model(
                f"{path.name} is damaged: the tensor {name[:60]!r} overlaps another, leaves a gap, "
                "or does not match its shape."
            )
        end = stop
    if end != size - 8 - length:
        raise not_a_model(
            f"{path.name} is truncated or too long: its weights should end at byte {8 + length + end}."
        )
    return tensors


def _modules(files: Sequence[Readable]) -> object:
    """What sentence-transformers' `modules.json` lists; None without one, or if it cannot be read."""
    path = next((one for one in files if one.name == "modules.json"), None)
    if path is None or path.stat().st_size > _CONFIG_LIMIT:
        return None
    try:
        return msgspec.json.decode(path.read_bytes())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # engines can do without it


def _read_config(path: Readable) -> dict[str, Any]:
    try:
        if path.stat().st_size > _CONFIG_LIMIT:
            raise not_a_model(f"{path.name} is too large for a model's configuration.")
        config = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise from_os_error(error, "reading the model") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise not_a_model(f"{path.name} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise not_a_model(f"{path.name} is not a JSON object.")
    return config


def _parameters(tensors: dict[str, _Tensor], quantization: object) -> int:
    """Elements, with MLX's 32-bit packed matrices counted unpacked.

    Each packed matrix has one scale per group of elements; the group's size is in the configuration, possibly
    per matrix.
    """
    mlx = quantization if isinstance(quantization, dict) else {}
    total = 0
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        weight, scales = tensors.get(f"{stem}.weight"), tensors.get(f"{stem}.scales")
        if weight is None or scales is None or weight.dtype != "U32":
            total += prod(tensor.shape)
        elif last == "weight":
            own = mlx.get(stem)
            group = _whole((own if isinstance(own, dict) else mlx).get("group_size"))
            total += prod(scales.shape) * group
    return total


def _quantization(config: dict[str, Any], tensors: dict[str, _Tensor]) -> str:
    for key in ("quantization", "quantization_config"):
        quantization = config.get(key)
        if isinstance(quantization, dict):
            method, bits = _word(quantization.get("quant_method")), _whole(quantization.get("bits"))
            if method or bits:
                return "-".join(filter(None, (method, f"{bits}bit" if bits else "")))
    kinds = {tensor.dtype for tensor in tensors.values()}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _kv_bytes(config: dict[str, Any]) -> int:
    layers = _whole(config.get("num_hidden_layers")) or _whole(config.get("n_layer"))
    heads = _whole(config.get("num_attention_heads")) or _whole(config.get("n_head"))
    latent = _whole(config.get("kv_lora_rank"))
    if latent:  # multi-head latent attention: one compressed vector and one rotary key for all heads
        return layers * (latent + _whole(config.get("qk_rope_head_dim"))) * 2
    kv_heads = _whole(config.get("num_key_value_heads")) or heads
    hidden = _whole(config.get("hidden_size")) or _whole(config.get("n_embd"))
    head = _whole(config.get("head_dim")) or (hidden // heads if heads else 0)
    size = 2 * layers * kv_heads * head * 2
    return size if size < 2**40 else 0


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else 0


def _word(value: object) -> str:
    return value if isinstance(value, str) and is_line(value, 100) else ""


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else None
