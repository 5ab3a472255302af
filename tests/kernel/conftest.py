from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from counting import Counter
from greenroom.actors.journal.memory import MemoryJournal
from greenroom.actors.journal.port import Journal
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.testing import ManualClock, RecordingEffectHandler


class Bench:
    """One counter in a system of its own."""

    def __init__(self, journal: Journal | None = None, **options: object) -> None:
        self.clock = ManualClock()
        self.effect_handler = RecordingEffectHandler()
        self.counter = Counter()
        self.journal = journal if journal is not None else MemoryJournal()
        self.failures: list[BaseException] = []
        self.system = ActorSystem(self.journal, clock=self.clock, on_failure=self.failures.append)
        self.system.register(self.counter, effect_handler=self.effect_handler, **options)  # type: ignore[arg-type]

    def start(self) -> Bench:
        self.system.start()
        return self

    def stored(self) -> list[str]:
        return [record.type for record in self.journal.read()]


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(journal: Journal | None = None, **options: object) -> Bench:
        bench = Bench(journal, **options)
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.system.stop()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench().start()
