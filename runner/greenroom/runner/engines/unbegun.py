"""Why an engine was never begun, and whose failure that was."""

from __future__ import annotations

import msgspec

from greenroom.actors.values import Failure
from greenroom.runner.errors import is_machines, refused_by_machine


def no_keeper(message: str, said: str = "") -> Failure:
    """Its keeper could not be started, or died before it had begun."""
    return Failure(kind="transient", code="keeper", message=message, detail=said, blame="machine")


def not_spawned(code: str, number: int, message: str) -> Failure:
    """What a keeper says that could not begin: another has settled this start, or exec or fork failed."""
    if code == "claimed":
        return Failure(kind="transient", code="claimed", message=message, blame="ours")
    if is_machines(number):
        return msgspec.structs.replace(refused_by_machine("", OSError(number, "")), message=message)
    return Failure(kind="permanent", code="cannot_start", message=message, blame="configuration")
