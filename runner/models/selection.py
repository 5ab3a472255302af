"""Which files of a folder make up a model. Pure: names in, names out.

Weights that can carry code (pickles) and code itself are never taken, so nothing of it can be run later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from greenroom.runner.models.failures import not_a_model
from greenroom.runner.models.gguf import shard_of

_COMPANIONS = {".json", ".jinja", ".txt", ".model", ".vocab", ".tiktoken", ".md"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def choose_files(names: Sequence[str], where: str) -> list[str]:
    """The names that belong to the model: a GGUF with all its shards and its projector, or all safetensors
    with tokenizer and configuration.

    Raises:
        JobFailed: permanent, `not_a_model`, when there is none, or when it is not clear which one is meant.
    """
    names = sorted(name for name in names if "/" not in name and not name.startswith("."))
    ggufs = [name for name in names if _suffix(name) == ".gguf"]
    safetensors = [name for name in names if _suffix(name) == ".safetensors"]
    if ggufs and safetensors:
        raise not_a_model(
            f"{where} holds both GGUF and safetensors files. Name the GGUF file, or move one kind away."
        )
    if ggufs:
        return _one_gguf(ggufs, where)
    if safetensors:
        return [name for name in names if _suffix(name) in _COMPANIONS or name in safetensors]
    if any(_suffix(name) in _PICKLES for name in names):
        raise not_a_model(
            f"{where} holds only PyTorch weights, which can run code when they are loaded. "
            "Use a GGUF or safetensors version of the model."
        )
    raise not_a_model(f"{where} holds no model: neither .gguf nor .safetensors files.")


def with_shards(name: str, names: Sequence[str]) -> list[str]:
    """A GGUF file and, if it is one part of several, the other parts that lie beside it.

    Raises:
        JobFailed: permanent, `not_a_model`, when parts are missing.
    """
    stem, _, count = shard_of(name)
    if not stem:
        return [name]
    found = {shard_of(n)[1]: n for n in names if shard_of(n)[0] == stem and shard_of(n)[2] == count}
    missing = [number for number in range(1, count + 1) if number not in found]
    if missing:
        raise not_a_model(
            f"{name} is one of {count} parts, and {len(missing)} of them are missing beside it "
            f"(the first is {stem}-{missing[0]:05d}-of-{count:05d}.gguf)."
        )
    return [found[number] for number in range(1, count + 1)]


def _one_gguf(ggufs: list[str], where: str) -> list[str]:
    projectors = [name for name in ggufs if "mmproj" in name.lower()]
    models = [name for name in ggufs if name not in projectors]
    if not models:
        raise not_a_model(f"{where} holds only a projector ({projectors[0]}), not the model it belongs to.")
    chosen = with_shards(models[0], models)
    if len(chosen) != len(models):
        raise not_a_model(f"{where} holds several models: {', '.join(models[:8])}. Name one of these files.")
    # Of several projectors the 16-bit one is what everybody publishes first.
    projectors.sort(key=lambda name: ("f16" not in name.lower().replace("bf16", ""), name))
    return [*chosen, *projectors[:1]]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
