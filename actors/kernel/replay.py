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
    states = {core.address: core.initial() for core in cores}
    versions: dict[Address, dict[str, int]] = {core.address: {} for core in cores}
    dormant: dict[str, int] = {}
    owners: dict[str, Core[Any, Any] | None] = {}
    for record in records:
        stream = record.stream
        if stream not in owners:
            owners[stream] = _owner(stream, cores)
        owner = owners[stream]
        if owner is None:
            dormant[stream] = record.version
            continue
        versions[owner.address][stream] = record.version
        stored = codec.decode(record)
        if stored is None:
            continue
        try:
            states[owner.address] = owner.apply(states[owner.address], stored)
        except Exception as error:
            # apply is total: if it raises, the state after this event is unknown, and so is all after it.
            raise StartFailed(f"event {record.seq} ({record.id}) cannot be replayed: {error!r}") from error
    return {address: Replayed(state, versions[address]) for address, state in states.items()}, dormant


def _owner(stream: str, cores: Sequence[Core[Any, Any]]) -> Core[Any, Any] | None:
    if stream.startswith(PARKED):
        return None
    owners = [core for core in cores if core.claims(stream)]
    if len(owners) > 1:
        raise StartFailed(f"{owners[0].address} and {owners[1].address} both claim the stream {stream!r}")
    return owners[0] if owners else None
