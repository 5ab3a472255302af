"""From the journal to states: what is read at the start, after a failure, and for diagnosis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from greenroom.actors.journal.port import Record
from greenroom.actors.kernel.codec import Codec
from greenroom.actors.kernel.core import Address, Core
from greenroom.actors.kernel.errors import StartFailed

PARKED = "parked/"
"""Streams of `command_parked`, one for each actor; they are the kernel's own, and nobody folds them."""


class Replayed(NamedTuple):
    """What the journal says of one actor."""

    state: Any
    versions: dict[str, int]
    """The last version of each of its streams."""


def replay(
    records: Iterable[Record], codec: Codec, cores: Sequence[Core[Any, Any]]
) -> tuple[dict[Address, Replayed], dict[str, int]]:
    """Fold all records; the second value is the last version of each stream nobody claims.

    A stream that no core claims is dormant: a host's or a plug-in's that is gone. It is not decoded.
    Raises JournalError for what cannot be read, StartFailed for what cannot be folded.
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
        except Exception as error:
            # apply is total: if it raises, the state after this event is unknown, and so is all after it.
            raise StartFailed(f"event {record.seq} ({record.id}) cannot be replayed: {error!r}") from error
    return {address: Replayed(fold.state, fold.versions) for address, fold in folds.items()}, dormant


class _Fold:
    """One actor's state on its way through the journal."""

    __slots__ = ("apply", "state", "versions")

    def __init__(self, core: Core[Any, Any]) -> None:
        self.apply = core.apply
        self.state: Any = core.initial()
        self.versions: dict[str, int] = {}


def _owner(stream: str, cores: Sequence[Core[Any, Any]]) -> Core[Any, Any] | None:
    if stream.startswith(PARKED):
        return None
    owners = [core for core in cores if core.claims(stream)]
    if len(owners) > 1:
        raise StartFailed(f"{owners[0].address} and {owners[1].address} both claim the stream {stream!r}")
    return owners[0] if owners else None
