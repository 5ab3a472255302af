"""What a shell needs of the system around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from greenroom.actors.kernel.clock import Clock
from greenroom.actors.kernel.codec import Batch
from greenroom.actors.kernel.core import Command, Core, Event, Fault, Tell


class Surroundings(Protocol):
    """What a shell needs of its system."""

    clock: Clock
    failure: BaseException | None

    def prepare(
        self, core: Core[Any, Any], versions: dict[str, int], events: Sequence[Event], cause: str
    ) -> Batch:
        """Make the events of one decision ready to be stored. Raises CannotEncode."""
        ...

    def commit(self, batch: Batch) -> None:
        """Store them, all or none. Raises NotWritten or JournalFailed."""
        ...

    def send(self, effect: Tell, cause: str) -> None:
        """Deliver a command to another actor."""
        ...

    def park(self, core: Core[Any, Any], about: Fault, cause: str, command: Command | None = None) -> None:
        """Store that something failed and was put aside; of a `command`, its fields. Raises JournalFailed."""
        ...

    def failed(self, error: BaseException) -> None:
        """Stop the system: going on could falsify the journal."""
        ...

    def sent(self) -> None:
        """One message is under way."""
        ...

    def handled(self) -> None:
        """One message is done."""
        ...
