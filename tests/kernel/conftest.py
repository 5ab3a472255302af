from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from counter_bench import Bench
from greenroom.actors.journal.port import Journal

BOTH = ("test_actor", "test_supervision")
"""Modules whose tests hold for actors on threads and for those of a `ManualSystem`."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    assert metafunc.module is not None
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

    def make(journal: Journal | None = None, **options: Any) -> Bench:
        bench = Bench(kind, journal, **options)
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.system.stop()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench().start()
