"""From the journal to states: what is read at the start, after a failure, and for diagnosis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from greenroom.actors.journal.port import Record
from greenroom.actors.kernel.codec import Codec
from greenroom.actors.kernel.core import Address, Core, Fault, fault
from greenroom.actors.kernel.errors import StartFailed

PARKED = "parked/"
"""Streams of `command_parked`, one for each actor; they are the kernel's own and are not folded."""


class LeftOut(NamedTuple):
    """A stored event that cannot be folded: the state is as if it were not there."""

    event_id: str
    fault: Fault


class Replayed(NamedTuple):
    state: Any
    versions: dict[str, int]
    """The last version of each of its streams."""
    left_out: tuple[LeftOut, ...] = ()


def replay(
    records: Iterable[Record], codec: Codec, cores: Sequence[Core[Any, Any]]
) -> tuple[dict[Address, Replayed], dict[str, int]]:
    """Fold all records; the second value is the last version of each stream that no core claims.

    A stream that no core claims is dormant: a host's or a plug-in's that is gone. It is not decoded.
    An event that `apply` raises on is left out, and named in the result: one event must not keep the rest
    from starting. Raises JournalError for what cannot be read.
    """
    folds = {core.address: _Fold(core) for core in cores}
    dormant: dict[str, int] = {}
    owners: dict[str, _Fold | None] = {}
    decode = codec.decode
    for record in records:
        stream = record.stream
        try:
            fold = owners[stream]
        except KeyError:
            owner = _owner(stream, cores)
            fold = owners[stream] = folds[owner.address] if owner is not None else None
        if fold is None:
            dormant[stream] = record.version
            continue
        fold.versions[stream] = record.version
        stored = decode(record)
        if stored is None:
            continue
        try:
            fold.state = fold.apply(fold.state, stored)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this event's
            fold.left_out.append(LeftOut(record.id, fault(error, doing="replay an event", about=record.id)))
    replayed = {
        address: Replayed(fold.state, fold.versions, tuple(fold.left_out)) for address, fold in folds.items()
    }
    return replayed, dormant


class _Fold:
    """One actor's state on its way through the journal."""

    __slots__ = ("apply", "left_out", "state", "versions")

    def __init__(self, core: Core[Any, Any]) -> None:
        self.apply = core.apply
        self.state: Any = core.initial()
        self.versions: dict[str, int] = {}
        self.left_out: list[LeftOut] = []


def _owner(stream: str, cores: Sequence[Core[Any, Any]]) -> Core[Any, Any] | None:
    if stream.startswith(PARKED):
        return None
    owners = [core for core in cores if core.claims(stream)]
    if len(owners) > 1:
        raise StartFailed(f"{owners[0].address} and {owners[1].address} both claim the stream {stream!r}")
    return owners[0] if owners else None
