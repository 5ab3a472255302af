"""Whether a model can be stored and run here: checked before anything is fetched, with the numbers.

`pull --force` skips the checks: the disk may be enlarged meanwhile, or the model be for another machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from greenroom.actors.values import ModelFormat
from greenroom.runner.errors import JobFailed
from greenroom.runner.models.sources.base import Offer
from greenroom.runner.systems.disk_room import RESERVE
from greenroom.runner.units import format_size

_ANYWAY = "greenroom pull --force fetches it anyway."


@dataclass(frozen=True)
class Reader:
    """A backend and the models it can read."""

    name: str
    formats: tuple[ModelFormat, ...]
    overhead: int
    """Bytes an engine needs beyond the weights."""
    verdict: str
    """Why this machine cannot run it; empty if it can."""


@dataclass(frozen=True)
class Machine:
    memory: int = 0
    """Bytes engines may use in all; 0 if unknown."""
    readers: tuple[Reader, ...] = field(default_factory=tuple)


def check_disk(offer: Offer, present: int, free: int, folder: str) -> None:
    """Raise JobFailed, permanent, `no_space`, when the rest of an offer does not fit on the disk.

    `present` bytes need not be fetched, `free` bytes may be written; both exclude what other pulls still
    need.
    """
    needed = offer.writes - present
    if needed <= 0 or needed + RESERVE <= free:
        return
    rest = f" more ({format_size(present)} are present already)" if present else ""
    raise JobFailed.permanent(
        "no_space",
        f"{_name(offer)} needs {format_size(needed)}{rest} on the disk, and {folder} has "
        f"{format_size(max(free, 0))} free, of which {format_size(RESERVE)} is reserved for the journal.",
        advice=f"Free some space: greenroom df shows what uses it. {_ANYWAY}",
    )


def check_machine(offer: Offer, machine: Machine) -> None:
    """Raise JobFailed when no backend could ever run an offer here.

    Permanent; `cannot_run_here` when no backend that reads it runs on this machine, `does_not_fit` when its
    weights alone exceed what engines may use.
    """
    if not offer.format or not machine.readers:
        return
    readers = [one for one in machine.readers if _reads(one, offer.format)]
    able = [one for one in readers if not one.verdict]
    if not able:
        reasons = " ".join(one.verdict for one in readers) or f"No backend reads {offer.format} models."
        raise JobFailed.permanent(
            "cannot_run_here", f"{_name(offer)} cannot run on this machine: {reasons}", advice=_ANYWAY
        )
    needed = offer.weights + min(one.overhead for one in able)
    if offer.weights and machine.memory and needed > machine.memory:
        raise JobFailed.permanent(
            "does_not_fit",
            f"{_name(offer)} needs at least {format_size(needed)} of memory to run, and engines may use "
            f"{format_size(machine.memory)} on this machine.",
            advice=f"{_smaller(offer, machine.memory - min(one.overhead for one in able))}{_ANYWAY}",
        )


def _reads(reader: Reader, format_: ModelFormat) -> bool:
    # Whether safetensors are quantised for MLX is known only from their configuration.
    family = {"gguf"} if format_ == "gguf" else {"safetensors", "safetensors-mlx"}
    wanted = {format_} if format_ == "safetensors-mlx" else family
    return bool(wanted & set(reader.formats))


def _smaller(offer: Offer, room: int) -> str:
    fitting = {name: size for name, size in offer.others.items() if size <= room}
    if not fitting:
        return ""
    best = max(fitting, key=lambda name: fitting[name])
    tagged = str(offer.reference.variant(best)).replace("huggingface.co/", "hf.co/", 1)
    return f"Its quantisation {best} ({format_size(fitting[best])}) would fit: {tagged}. "


def _name(offer: Offer) -> str:
    from greenroom.runner.models.references import familiar

    return familiar(str(offer.reference))
