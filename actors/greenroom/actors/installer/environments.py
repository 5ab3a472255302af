"""Installs a program's own environments: with the same jobs and rules, but under names that are not declared
in advance, and without engines, so that a retired environment can be removed at once.

Two versions of an environment are kept: the one in use and the previous one, since programs may still run
from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.effects import InspectInstallations
from greenroom.actors.installer.events import (
    EnvironmentDeclared,
    InstallationRetiring,
    InstallAttemptFailed,
)
from greenroom.actors.installer.messages import INSTALLER, AwaitInspected, EnsureEnvironment
from greenroom.actors.installer.state import InstallerState, InstallerVolatile, apply
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Answer,
    Command,
    Decision,
    Effect,
    Event,
    Later,
    Recovered,
    Stored,
    Tell,
)
from greenroom.actors.reports import Happened
from greenroom.actors.retry import CONTACT_RETRIES, INSTALL_RETRIES, RetryPolicy
from greenroom.actors.values import BackendFacts

_INSPECTED_KEY = "inspected"

Volatile = InstallerVolatile


class EnvironmentInstaller:
    address: Address = INSTALLER
    event_types: Sequence[type[Event]] = InstallerCore.event_types

    def __init__(self, policies: Mapping[str, RetryPolicy]) -> None:
        """`policies` says by name when a failed attempt is retried; those without are retried as backends
        are. It may change at any time.
        """
        self._policies = policies

    def claims(self, stream: str) -> bool:
        return self._core(()).claims(stream)

    def stream_of(self, event: Event) -> str:
        return self._core(()).stream_of(event)

    def initial(self) -> InstallerState:
        return InstallerState()

    def initial_volatile(self) -> Volatile:
        return InstallerVolatile()

    def apply(self, state: InstallerState, stored: Stored[Any]) -> InstallerState:
        return apply(state, stored)

    def decide(
        self, state: InstallerState, command: Command[Any], now: Moment, volatile: Volatile
    ) -> Decision[Volatile]:
        name: str = getattr(command, "backend", "")
        match command:
            case AwaitInspected():
                return Decision(reply=Later(_INSPECTED_KEY))
            case Happened(event=InstallAttemptFailed(backend=backend)):
                name = backend
        asked = (name,) if isinstance(command, EnsureEnvironment) else ()
        decision = self._core((*state.backends, *asked), name).decide(state, command, now, volatile)
        decision = replace(decision, effects=_own(decision.effects))
        if isinstance(command, Recovered) or not asked:
            return decision
        assert isinstance(command, EnsureEnvironment)
        events, effects = decision.events, decision.effects
        if state.of(name).declared != command.declared:
            events = (EnvironmentDeclared(backend=name, declared=command.declared), *events)
        if name not in state.backends:
            # It may be on the disk although the journal does not know it.
            effects = (*effects, InspectInstallations(backends=(name,)))
        return replace(decision, events=events, effects=effects)

    def react(self, state: InstallerState, stored: Stored[Any]) -> Sequence[Effect]:
        return self._core(()).react(state, stored)

    def settle(self, state: InstallerState, now: Moment, volatile: Volatile) -> Decision[Volatile]:
        names = tuple(state.backends)
        alone = replace(
            volatile,
            in_use=dict.fromkeys(names, frozenset()),
            acted_on=dict.fromkeys(names, state.version),
            told=state.version,
            told_at=now.monotonic,
        )
        decision = self._core(names).settle(state, now, alone)
        effects = _own(decision.effects)
        if volatile.looked.union(volatile.unread).issuperset(names):
            effects = (*effects, Answer(key=_INSPECTED_KEY, outcome=None))
        unstored = decision.if_not_stored
        if unstored is not None:
            unstored = replace(unstored, effects=_own(unstored.effects))
        events = decision.events or tuple(_superseded(state, volatile))
        return replace(decision, events=events, effects=effects, if_not_stored=unstored)

    def _core(self, names: Iterable[str], acting: str = "") -> InstallerCore:
        """The rules for these names; with the policy of the one that the command is about."""
        own = self._policies.get(acting)
        retries = own or INSTALL_RETRIES
        if not acting:
            # Times that policies have set are kept as they are.
            retries = RetryPolicy(attempts=1, most=0.0, longest=math.inf)
        facts = tuple(_facts(name) for name in dict.fromkeys(names))
        return InstallerCore(facts, retries, own or CONTACT_RETRIES, install_defaults=False)


def _facts(name: str) -> BackendFacts:
    return BackendFacts(name=name, deferred=True, formats=(), modes=(), preference=0, install_preference=0)


def _own(effects: Sequence[Effect]) -> tuple[Effect, ...]:
    """Without messages to the scheduler and to the runners of engines, which a program has not."""
    return tuple(one for one in effects if not isinstance(one, Tell) or one.address == INSTALLER)


def _superseded(state: InstallerState, volatile: Volatile) -> Iterable[Event]:
    for name, backend in state.backends.items():
        if backend.usable is None or name not in volatile.looked or backend.job is not None:
            continue
        kept = {backend.current, *backend.past[-1:]}
        yield from (
            InstallationRetiring(backend=name, installation_id=one.id, reason="two newer ones are installed")
            for one in backend.whole
            if one.id not in kept
        )
