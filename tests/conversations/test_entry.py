"""Metadata on the disk is read as it was written, or not at all."""

from __future__ import annotations

import msgspec
import pytest
import xxhash

from greenroom.runner.conversations.entry import Damaged, decoded, encoded, is_id, new_id
from saved import entry_of


def test_it_is_read_as_it_was_written() -> None:
    entry = entry_of("abc", ends=(1, 2, 3), cause="for gemma3", restored=2)
    assert decoded(encoded(entry)) == entry


def test_any_flipped_byte_is_noticed() -> None:
    data = encoded(entry_of("ab"))
    for place in range(len(data)):
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(Damaged):
            decoded(flipped)


def test_any_cut_is_noticed() -> None:
    data = encoded(entry_of("ab"))
    for length in range(len(data)):
        with pytest.raises(Damaged):
            decoded(data[:length])
    with pytest.raises(Damaged):
        decoded(data + b" ")


@pytest.mark.parametrize(
    "change", [{"id": "../../secret"}, {"chain": ()}, {"size": 0}, {"tokens": -1}, {"chain": (b"",) * 20_000}]
)
def test_values_that_cannot_be_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(Damaged, match="impossible"):
        decoded(encoded(msgspec.structs.replace(entry_of("ab"), **change)))


def test_another_version_of_it_is_refused() -> None:
    text = b'{"id": "c-000000000000"}'
    with pytest.raises(Damaged, match="another version"):
        decoded(xxhash.xxh3_128_hexdigest(text).encode() + b"\n" + text)


def test_a_new_id_is_one() -> None:
    assert is_id(new_id())
    assert not is_id(f"{new_id()}\n")
    assert not is_id("c-00000000000G")
