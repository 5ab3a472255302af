"""The port every source implements: say what it would fetch, then fetch it into an arrival."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Literal, Protocol

from greenroom.actors.values import ModelFormat
from greenroom.runner.config import RegistrySettings
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.attempt import Moving
from greenroom.runner.models.references import Reference
from greenroom.runner.waits import Cancel

if TYPE_CHECKING:
    from greenroom.runner.installations.sources import PackageSources


class Report(Protocol):
    """Told how far it is."""

    def __call__(
        self, phase: str, done: int, total: int, message: str = "", moving: Iterable[Moving] = (), /
    ) -> None:
        """Bytes done, bytes in all (0 when unknown), and the files that are on their way."""
        ...


@dataclass(frozen=True)
class Offer:
    """What a source would fetch, found out before any byte of it moves."""

    reference: Reference
    source: str
    """Where it comes from, for people; without credentials."""
    fingerprint: str
    """Names this very content as far as the source knows without fetching it: what was fetched under the
    same fingerprint before is the same."""
    size: int = 0
    """Bytes of the model's files; 0 when unknown."""
    writes: int = 0
    """Bytes the disk must have room for."""
    files: tuple[str, ...] = ()
    format: ModelFormat | Literal[""] = ""
    """Empty when that is not known before its files are here."""
    weights: int = 0
    """Bytes of the weights, which must fit into memory; 0 when unknown."""
    blobs: tuple[tuple[str, int], ...] = ()
    """Digests and sizes of what will be fetched, as far as known: what of it is here is not fetched again."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Other quantisations that are published beside it, and the bytes of their weights."""


@dataclass(frozen=True)
class Pins:
    """What the catalogue promises about a reference; empty leaves it open."""

    sha256: str = ""
    size: int = 0
    package_sha256: str = ""


@dataclass(frozen=True)
class Context:
    """What sources need beside the reference."""

    store: Path
    """The store's folder: what comes to its own disk can be linked."""
    packages: PackageSources | None = None
    """The user's package indexes and transport; found out when needed if None."""
    pins: Pins = field(default_factory=Pins)
    token: str = field(default="", repr=False)
    """A bearer token the caller gave for this pull; never stored."""
    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)
    """The user's mirrors and insecure registries."""
    cancel: Cancel = field(default_factory=Cancel, repr=False)
    """When set, every wait for a server ends."""


class Source(Protocol):
    """One kind of place models come from. Blocking: runs on a pull's own thread. Never retries by itself."""

    def describe(self, reference: Reference, cancel: Event) -> Offer:
        """Find out what there is.

        Raises:
            JobFailed: it is not there, or the source does not answer.
            JobCancelled: `cancel` was set.
        """
        ...

    def measure(self, offer: Offer, cancel: Event) -> Offer:
        """Complete an offer that is not here yet by what only the network knows. May be the offer itself.

        Raises:
            JobFailed: the source does not answer.
            JobCancelled: `cancel` was set.
        """
        ...

    def fetch(self, offer: Offer, arrival: Arrival, report: Report, cancel: Event) -> None:
        """Bring all files of the offer into the arrival, hashed.

        Raises:
            JobFailed: with what is to be told; what has come so far is thrown away or kept by the arrival.
            JobCancelled: `cancel` was set.
        """
        ...
