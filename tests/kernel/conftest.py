from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from counting import Counter
from greenroom.actors.journal.memory import MemoryJournal
from greenroom.actors.journal.port import Journal
from greenroom.actors.kernel.core import Command
from greenroom.actors.kernel.reply import Reply
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.testing import ManualClock, ManualSystem, RecordingEffectHandler

BOTH = ("test_actor", "test_supervision")
"""Modules whose tests hold for actors on threads and for those of a `ManualSystem`."""


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

    def __init__(self, kind: str, journal: Journal | None = None, **options: object) -> None:
        self.clock = ManualClock()
        self.effect_handler = RecordingEffectHandler()
        self.counter = Counter()
        self.journal = journal if journal is not None else MemoryJournal()
        self.failures: list[BaseException] = []
        self.system: ActorSystem
        if kind == "manual":
            self.system = ImmediateSystem(
                self.journal, clock=self.clock, faults_allowed=True, on_failure=self.failures.append
            )
        else:
            self.system = ActorSystem(self.journal, clock=self.clock, on_failure=self.failures.append)
        self.system.register(self.counter, effect_handler=self.effect_handler, **options)  # type: ignore[arg-type]

    def start(self) -> Bench:
        self.system.start()
        return self

    def stored(self) -> list[str]:
        return [record.type for record in self.journal.read()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in BOTH and "kind" in metafunc.fixturenames:
        needs_threads = "Turnstile" in metafunc.function.__code__.co_names
        metafunc.parametrize("kind", ["threads"] if needs_threads else ["threads", "manual"], indirect=True)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """How the actors of a bench run: on `threads`, or `manual`ly."""
    return getattr(request, "param", "threads")


@pytest.fixture
def make_bench(kind: str) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(journal: Journal | None = None, **options: object) -> Bench:
        bench = Bench(kind, journal, **options)
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.system.stop()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench().start()
