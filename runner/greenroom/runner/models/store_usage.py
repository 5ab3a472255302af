"""How many bytes of a model store are where, and which blobs need not be fetched."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from greenroom.runner.models.files import size_of, walk


@dataclass(frozen=True)
class StoreUsage:
    """Bytes on disk, hard links counted once."""

    models: int
    """What the index names."""
    other: int
    """Arrivals in progress, and what the next sweep removes."""

    @classmethod
    def of(cls, root: Path, named: Collection[Path]) -> StoreUsage:
        """`named` are the blobs that the index names."""
        seen: set[tuple[int, int]] = set()
        models = size_of(named, seen)
        return cls(models=models, other=size_of(walk(root), seen))


def present(blob: Path, size: int, partial: Path) -> int:
    """Bytes of a blob that are stored, or partially downloaded in the folder `partial`."""
    wheel = partial / "wheels" / f"{blob.name}.part"
    for place in (blob, partial / blob.name, wheel):
        with suppress(OSError):
            return min(place.stat().st_size, size)
    return size if wheel.with_name(blob.name).is_dir() else 0
