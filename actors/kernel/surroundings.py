"""What a shell needs of the system around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from greenroom.actors.kernel.clock import Clock
from greenroom.actors.kernel.codec import Batch
from greenroom.actors.kernel.core import Command, Core, Event, Tell
from greenroom.actors.kernel.replay import Replayed


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

    def replay(self, core: Core[Any, Any]) -> Replayed:
        """The durable state and the stream versions, from the journal."""
        ...

    def send(self, effect: Tell, cause: str) -> None:
        """Deliver a command to another actor."""
        ...

    def park(self, core: Core[Any, Any], command: Command, cause: str, error: BaseException) -> None:
        """Store that this command fails whenever it is handled."""
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
