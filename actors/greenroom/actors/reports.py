"""What effect handlers report to their actor, with `ActorSystem.report`.

A report carries the very event it leads to. The actor judges it first: it drops a report whose intent is no
longer open, and fills in what only it knows, such as a duration or the time of the next attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from greenroom.actors.kernel.core import Address, Command, Effect, Event
from greenroom.actors.limits import Id
from greenroom.actors.values import Failure

TellActor = Callable[[Address, Command[Any]], None]
"""Sends a report from any thread, without blocking; must not raise when the system is stopping."""


class Happened(Command[None], frozen=True, kw_only=True):
    """Something an effect began has happened."""

    event: Event
    cause: Id = ""
    """What made the effect necessary, where the actor does not know it from an intent."""


class EffectEnded(Command[None], frozen=True, kw_only=True):
    """An effect that a caller waits for has ended, with exactly one of these."""

    effect: Effect
    """Without secrets: a command that fails is stored."""
    event: Event | None = None
    answer: msgspec.Struct | None = None
    """What the caller gets."""
    failure: Failure | None = None
    cause: Id = ""
    """What made the effect necessary."""
