"""A script with an event-sourced actor of its own: an allowance of tokens that it remembers.

python examples/script.py allowance.db 40      # again and again
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Address, Command, Decision, Event, SingleStream, Stored, refuse
from greenroom.actors.kernel.errors import Refused
from greenroom.actors.kernel.system import ActorSystem


class Spend(Command, frozen=True, kw_only=True):
    tokens: int


class Spent(Event, frozen=True, kw_only=True):
    TAG = "allowance_spent"
    tokens: int


class Balance(msgspec.Struct, frozen=True):
    left: int = 100


class Allowance(SingleStream[Balance]):
    address = Address("allowance")
    event_types = (Spent,)

    def initial(self) -> Balance:
        return Balance()

    def decide(self, state: Balance, command: Command, _now: Moment, _seen: None) -> Decision[None]:
        match command:
            case Spend(tokens=tokens) if tokens > state.left:
                return Decision(reply=refuse("spent", f"Only {state.left} tokens are left.", status=429))
            case Spend(tokens=tokens):
                return Decision(events=(Spent(tokens=tokens),), reply=state.left - tokens)
            case _:
                return Decision()

    def apply(self, state: Balance, stored: Stored[Any]) -> Balance:
        return Balance(state.left - stored.event.tokens)


def main(journal: Path, tokens: int) -> None:
    system = ActorSystem(SqliteJournal(journal))
    system.register(Allowance())
    with system:
        try:
            left = system.ask("allowance", Spend(tokens=tokens)).get(timeout=10)
        except Refused as refused:
            print(refused)
        else:
            print(f"{left} tokens are left.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
