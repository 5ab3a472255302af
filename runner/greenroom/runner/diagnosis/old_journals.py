"""What earlier versions stored in sentences only, for journals whose events lack the fields.

The one place that parses sentences; they are those of Greenroom 0.1 and never change.
"""

from __future__ import annotations

import re

from greenroom.actors.scheduler.events import BackendChosen, LoadRefused
from greenroom.actors.values import EngineExit, Failure

_NOT_INSTALLED = re.compile(r'backend "([^"]+)" is not installed|(\S+) could not be installed: ')
_OFFERED = re.compile(r"install-runner --backend ([a-z0-9.-]+)")
_PREFERRED = re.compile(r"(\S+) would be preferred but is not installed")
_OUT_OF_MEMORY = re.compile(r"ran out of memory|could not get the memory")


def missing_backends(refused: LoadRefused) -> tuple[str, ...]:
    """The backends a refused model needs and that were not installed, the preferred one first."""
    found = _NOT_INSTALLED.match(refused.message)
    if refused.backends or found is None:
        return refused.backends
    first = found[1] or found[2]
    return (first, *(one for one in _OFFERED.findall(refused.advice) if one != first))


def preferred_backend(chosen: BackendChosen | None) -> str:
    """The backend that is preferred to the chosen one and was not installed."""
    if chosen is None or chosen.preferred:
        return chosen.preferred if chosen is not None else ""
    return next((found[1] for one in chosen.reasons if (found := _PREFERRED.match(one))), "")


def ran_out_of_memory(end: EngineExit, failure: Failure) -> bool:
    """Whether an engine ended for lack of memory."""
    return end.out_of_memory or bool(_OUT_OF_MEMORY.search(end.summary or failure.message))
