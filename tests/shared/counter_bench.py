"""A counter in an actor system of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from counting import Counter
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import Journal
from greenroom.actors.kernel.answers import Reply
from greenroom.actors.kernel.core import Command
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.testing import ManualClock, ManualSystem, RecordingEffectHandler


class ImmediateSystem(ManualSystem):
    """Handles what it is sent at once."""

    def ask(self, command: Command[Any], **more: Any) -> Reply[Any]:
        reply = super().ask(command, **more)
        self.rest()
        return reply

    def tell(self, command: Command[Any], **more: Any) -> None:
        super().tell(command, **more)
        self.rest()


class Bench:
    """One counter in a system of its own."""

    def __init__(
        self, kind: str, journal: Journal | None = None, counter: Counter | None = None, **options: Any
    ) -> None:
        self.clock = ManualClock()
        self.effect_handler = RecordingEffectHandler()
        self.counter = counter or Counter()
        self.journal: Any = journal if journal is not None else MemoryJournal()
        self.failures: list[BaseException] = []
        self.on_failure: Callable[[BaseException], object] = self.failures.append
        self.system: ActorSystem
        if kind == "manual":
            self.system = ImmediateSystem(
                self.journal, clock=self.clock, faults_allowed=True, on_failure=self._failed
            )
        else:
            self.system = ActorSystem(self.journal, clock=self.clock, on_failure=self._failed)
        self.system.register(self.counter, effect_handler=self.effect_handler, **options)

    def _failed(self, error: BaseException) -> None:
        self.on_failure(error)

    def start(self) -> Bench:
        self.system.start()
        return self

    def stored(self) -> list[str]:
        return [record.type for record in self.journal.read()]
