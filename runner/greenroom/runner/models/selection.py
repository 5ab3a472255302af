"""Which files of a folder or a published repository are the model: its format, shards and quantisation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from greenroom.runner.errors import JobFailed
from greenroom.runner.models.errors import not_a_model
from greenroom.runner.models.manifest import COMPANIONS, is_projector, shard_of, suffix_of

_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d[A-Z0-9_]*|TQ\d_\d|BF16|F16|F32|MXFP4[A-Z0-9_]*|NVFP4))"
    r"(?:-\d{5}-of-\d{5})?\.gguf$",
    re.IGNORECASE,
)
_MODULE = re.compile(r"\d{1,3}_\w{1,50}/(?:config\.json|model\.safetensors)")
"""Files of sentence-transformers' modules: how an embedding model pools is in one of them."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def choose_files(names: Sequence[str], where: str) -> list[str]:
    """The names that belong to the model: a GGUF with all its shards and its projector, or all safetensors
    with tokenizer and configuration.

    Raises:
        JobFailed: permanent, `not_a_model`, when there is none, or several.
    """
    names = sorted(name for name in names if "/" not in name and not name.startswith("."))
    ggufs = [name for name in names if suffix_of(name) == ".gguf"]
    safetensors = [name for name in names if suffix_of(name) == ".safetensors"]
    if ggufs and safetensors:
        raise not_a_model(
            f"{where} holds both GGUF and safetensors files. Name the GGUF file, or keep only one format."
        )
    if ggufs:
        return _one_gguf(ggufs, where)
    if safetensors:
        _check_shards(safetensors)
        return [name for name in names if suffix_of(name) in COMPANIONS or name in safetensors]
    if any(suffix_of(name) in _PICKLES for name in names):
        raise not_a_model(
            f"{where} holds only PyTorch weights, which can run code when loaded. "
            "Use a GGUF or safetensors version of the model."
        )
    raise not_a_model(f"{where} holds no model: neither .gguf nor .safetensors files.")


def with_shards(name: str, names: Sequence[str]) -> list[str]:
    """A GGUF file and, if it is one shard of several, the others beside it.

    Raises:
        JobFailed: permanent, `not_a_model`, when shards are missing.
    """
    stem, _, count = shard_of(name)
    if not stem:
        return [name]
    found = {shard_of(n)[1]: n for n in names if shard_of(n)[0] == stem and shard_of(n)[2] == count}
    missing = [number for number in range(1, count + 1) if number not in found]
    if missing:
        raise not_a_model(
            f"{name} is one of {count} parts, and {len(missing)} of them are missing from its folder "
            f"(the first is {stem}-{missing[0]:05d}-of-{count:05d}.gguf)."
        )
    return [found[number] for number in range(1, count + 1)]


def choose_from_repository(names: Sequence[str], quantisation: str, where: str) -> list[str]:
    """The paths in a published repository that belong to one quantisation (empty: the usual one).

    GGUF repositories hold one model in many quantisations, some in folders of their own. Names must match
    exactly: `Q4_K` is not `Q4_K_M`, and `f16` is not `bf16`. A missing one is never replaced by another.

    Raises:
        JobFailed: permanent; `no_such_quantisation` lists the existing ones.
    """
    models = [n for n in names if suffix_of(n) == ".gguf" and not is_projector(n)]
    if not models:
        if quantisation:
            raise JobFailed.permanent(
                "no_such_quantisation",
                f"{where} has no GGUF files, so there is no {quantisation} of it.",
                advice=f"Leave the tag out: hf.co/{where}.",
            )
        return _safetensors(names, where)
    groups: dict[str, list[str]] = {}
    for name in sorted(models):
        groups.setdefault(quantisation_of(name), []).append(name)
    chosen = _group(groups, quantisation)
    if chosen is None:
        raise JobFailed.permanent(
            "no_such_quantisation",
            f"{where} has no quantization {quantisation}.",
            advice=f"It has: {', '.join(sorted(filter(None, groups)))}.",
        )
    files = groups[chosen]
    # Several files of one quantisation are the shards of one model, or several models.
    whole = with_shards(files[0], files)
    if len(whole) != len(files):
        raise not_a_model(f"{where} holds several models with that quantization: {', '.join(files[:8])}.")
    return [*whole, *_projector(names)]


def _check_shards(names: Sequence[str]) -> None:
    """Raise JobFailed, permanent, `not_a_model`, when a numbered file of safetensors is missing."""
    for stem, count in {(found[1], found[3]) for name in names if (found := _SHARD.fullmatch(name))}:
        for number in range(1, int(count) + 1):
            if (shard := f"{stem}-{number:05d}-of-{count}.safetensors") not in names:
                raise not_a_model(f"It is not complete: {shard} is missing.")


def quantisation_of(name: str) -> str:
    """The quantisation in a GGUF file's name, in capitals: `Q4_K_M`, `BF16`; empty if none."""
    match = _QUANTIZATION.search(PurePosixPath(name).name)
    return match[1].upper() if match else ""


def quantisations_of(sizes: Mapping[str, int]) -> dict[str, int]:
    """The quantisations among published files, each with its bytes."""
    found: dict[str, int] = {}
    for name, size in sizes.items():
        if suffix_of(name) == ".gguf" and not is_projector(name):
            quantisation = quantisation_of(name)
            if quantisation:
                found[quantisation] = found.get(quantisation, 0) + size
    return found


def _group(groups: dict[str, list[str]], quantisation: str) -> str | None:
    wanted = quantisation.upper()
    if not wanted:
        return "Q4_K_M" if "Q4_K_M" in groups else next(iter(groups))
    if wanted in groups:
        return wanted
    # Unsloth's dynamic ones may be named without their prefix unless another has that name.
    return next((group for group in groups if group == f"UD-{wanted}"), None)


def _safetensors(names: Sequence[str], where: str) -> list[str]:
    chosen = choose_files([name for name in names if "/" not in name], where)
    # Mistral publishes the same weights a second time in one file.
    if any(not name.startswith("consolidated") for name in chosen if suffix_of(name) == ".safetensors"):
        chosen = [name for name in chosen if not name.startswith("consolidated")]
    modules = [name for name in names if _MODULE.fullmatch(name)] if "modules.json" in chosen else []
    return [*chosen, *sorted(modules)]


def projector_beside(name: str, names: Sequence[str]) -> list[str]:
    """The projector that belongs to a GGUF file, out of the names in its folder; an empty list if none does.

    It has the model's name but for the quantisation, or there is no other model that it could belong to.
    """
    if is_projector(name):
        return []
    stems = {one: _stem(one) for one in names if is_projector(one) or suffix_of(one) == ".gguf"}
    named = [one for one in names if is_projector(one) and stems[one] == stems[name]]
    alone = all(stem == stems[name] for one, stem in stems.items() if not is_projector(one))
    return _projector(named or (names if alone else ()))


def _stem(name: str) -> str:
    """What a model's file and its projector's have in common: `SmolVLM` of `mmproj-SmolVLM-F16.gguf`."""
    found = _QUANTIZATION.sub("", name) if _QUANTIZATION.search(name) else name.rpartition(".")[0]
    return re.sub(r"^mmproj[-._]|[-._]mmproj\b|-\d{5}-of-\d{5}$", "", found.lower())


def _projector(names: Sequence[str]) -> list[str]:
    """One projector of those that there are: with 16 bits, which is the usual one."""

    def order(name: str) -> tuple[bool, str]:
        return "f16" not in name.lower().replace("bf16", ""), name

    return sorted(filter(is_projector, names), key=order)[:1]


def _one_gguf(ggufs: list[str], where: str) -> list[str]:
    models = [name for name in ggufs if not is_projector(name)]
    if not models:
        raise not_a_model(f"{where} holds only a projector ({ggufs[0]}), not the model it belongs to.")
    chosen = with_shards(models[0], models)
    if len(chosen) != len(models):
        raise not_a_model(f"{where} holds several models: {', '.join(models[:8])}. Name one of these files.")
    return [*chosen, *_projector(ggufs)]
