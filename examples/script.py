"""A script with an event-sourced actor of its own: an allowance of tokens that it remembers.

python examples/script.py allowance.db 40      # again and again
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from greenroom.actors import (
    ActorSystem,
    Address,
    Command,
    Decision,
    Event,
    Moment,
    Refused,
    SingleStream,
    SqliteJournal,
    Stored,
    refuse,
)


class Spend(Command[int], frozen=True, kw_only=True):
    ACTOR = Address("allowance")
    tokens: int


class Spent(Event, frozen=True, kw_only=True):
    TAG = "allowance_spent"
    tokens: int


class Allowance(SingleStream[int]):
    address = Spend.ACTOR
    event_types = (Spent,)

    def initial(self) -> int:
        return 100

    def decide(self, left: int, command: Command[Any], _now: Moment, _volatile: None) -> Decision[None]:
        match command:
            case Spend(tokens=tokens) if tokens > left:
                return Decision(reply=refuse("spent", f"Only {left} tokens are left.", kind="exhausted"))
            case Spend(tokens=tokens):
                return Decision(events=(Spent(tokens=tokens),), reply=command.replied(left - tokens))
            case _:
                return Decision()

    def apply(self, left: int, stored: Stored[Any]) -> int:
        return int(left - stored.event.tokens)


def main(journal: Path, tokens: int) -> None:
    system = ActorSystem(SqliteJournal(journal))
    system.register(Allowance())
    with system:
        try:
            left = system.ask(Spend(tokens=tokens)).get(timeout=10)
        except Refused as refused:
            print(refused)
        else:
            print(f"{left} tokens are left.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
