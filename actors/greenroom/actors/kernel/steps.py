"""The order of an actor's steps, for all that run cores: decide, persist, apply, effects, settle.

`Executor` adds replies and the handling of failures, `greenroom.actors.testing.Case` the checks of a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Core, Decision, Effect
from greenroom.actors.kernel.event_store import Batch, Store

S = TypeVar("S")
V = TypeVar("V")

SETTLE_ROUNDS = 200
"""Decisions of `settle` in a row that may have events."""


class Restless(Exception):
    """Each of a core's decisions leads to another."""


class Prepared(NamedTuple):
    """A decision that can be stored, and what holds once it is."""

    decision: Decision[Any]
    batch: Batch | None
    """None when it has no events."""
    state: Any
    effects: tuple[tuple[Effect, str], ...]
    """In order, each with its cause."""
    cause: str
    """Of what the decision brings beside its events."""


class Steps(Generic[S, V]):
    """One core with its durable and volatile state."""

    def __init__(
        self, core: Core[S, V], store: Store, state: S, versions: dict[str, int] | None = None
    ) -> None:
        self.core = core
        self.state = state
        self.volatile = core.initial_volatile()
        self.versions = versions or {}
        """The last version of each of its streams."""
        self.commits = 0
        """Decisions committed so far."""
        self._store = store

    def prepare(self, decision: Decision[V], cause: str) -> Prepared:
        """Fold the decision's events and collect its effects; nothing has changed yet.

        Events are folded before they are stored: one that `apply` cannot take would fail every later start.
        Raises CannotEncode, and whatever `apply` and `react` raise.
        """
        cause = decision.cause or cause
        state, batch = self.state, None
        effects: list[tuple[Effect, str]] = []
        if decision.events:
            batch = self._store.prepare(self.core, self.versions, decision.events, cause)
            for one in batch.stored:
                state = self.core.apply(state, one)
                effects += [(effect, one.id) for effect in self.core.react(state, one)]
            cause = batch.stored[-1].id
        effects += [(effect, cause) for effect in decision.effects]
        return Prepared(decision, batch, state, tuple(effects), cause)

    def commit(self, prepared: Prepared) -> None:
        """Store the events, then take over the new states. Raises NotWritten with nothing changed."""
        if prepared.batch is not None:
            self._store.commit(prepared.batch)
            self.versions = prepared.batch.versions
        self.state = prepared.state
        if prepared.decision.volatile is not None:
            self.volatile = prepared.decision.volatile
        self.commits += 1

    def following(
        self, now: Callable[[], Moment], look: Callable[[], V], rounds: int = SETTLE_ROUNDS
    ) -> Iterator[Decision[V]]:
        """What follows from the state: decisions up to the first without events.

        Each has to be carried out before the next is asked for. Raises Restless after `rounds` of them.
        """
        for _ in range(rounds):
            decision = self.core.settle(self.state, now(), look())
            yield decision
            if not decision.events:
                return
        raise Restless(f"{self.core.address} does not settle")
