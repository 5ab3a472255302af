"""The interface of sources: say what would be fetched, then fetch it into an arrival."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Literal, Protocol

from greenroom.actors.progress import FileProgress
from greenroom.actors.values import ModelFormat
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.references import Reference
from greenroom.runner.setting_values import RegistrySettings
from greenroom.runner.threads import Cancel

if TYPE_CHECKING:
    from greenroom.runner.installations.sources import PackageSources


class Report(Protocol):
    """Receives progress."""

    def __call__(
        self, phase: str, done: int, total: int, message: str = "", moving: Iterable[FileProgress] = (), /
    ) -> None:
        """Bytes done, bytes in all (0 if unknown), and the files being transferred."""


@dataclass(frozen=True)
class Offer:
    """What a source would fetch, determined before any byte of it moves."""

    reference: Reference
    source: str
    """Where it comes from, for display; without credentials."""
    fingerprint: str
    """Identifies the content without fetching it: the same fingerprint means the same content."""
    size: int = 0
    """Bytes of the model's files; 0 if unknown."""
    writes: int = 0
    """Bytes needed on the disk."""
    files: tuple[str, ...] = ()
    format: ModelFormat | Literal[""] = ""
    """Empty if unknown before its files are fetched."""
    weights: int = 0
    """Bytes of the weights, which must fit into memory; 0 if unknown."""
    blobs: tuple[tuple[str, int], ...] = ()
    """Digests and sizes of what will be fetched, as far as known; stored ones are not fetched again."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Other published quantisations, and the bytes of their weights."""


@dataclass(frozen=True)
class Pins:
    """The catalogue's pins for a reference; empty means not pinned."""

    sha256: str = ""
    size: int = 0
    package_sha256: str = ""


@dataclass(frozen=True)
class SourceContext:
    store: Path
    """The store's folder: files on its own disk can be linked."""
    packages: PackageSources | None = None
    """The user's package indexes and transport; None to discover them when needed."""
    pins: Pins = field(default_factory=Pins)
    token: str = field(default="", repr=False)
    """The caller's bearer token for this pull; never stored."""
    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)
    """The user's mirrors and insecure registries."""
    sharing: bool = False
    """Take files from the disk only if that needs no copy of them."""
    cancel: Cancel = field(default_factory=Cancel, repr=False)
    """Ends every wait for a server when set."""


class Source(ABC):
    """A kind of place models come from. Blocking: runs on a pull's own thread. Never retries."""

    @abstractmethod
    def describe(self, reference: Reference, cancel: Event) -> Offer:
        """Find out what there is.

        Raises:
            JobFailed: It does not exist, or the source does not answer.
            JobCancelled: `cancel` was set.
        """

    def measure(self, offer: Offer, cancel: Event) -> Offer:  # noqa: ARG002 - most know everything already
        """Complete an offer to be fetched with what only the network knows. May return the same offer.

        Raises:
            JobFailed: The source does not answer.
            JobCancelled: `cancel` was set.
        """
        return offer

    @abstractmethod
    def fetch(self, offer: Offer, arrival: Arrival, report: Report, cancel: Event) -> None:
        """Fetch all files of the offer into the arrival, hashed.

        Raises:
            JobFailed: The reason; the arrival discards or keeps what was fetched.
            JobCancelled: `cancel` was set.
        """
