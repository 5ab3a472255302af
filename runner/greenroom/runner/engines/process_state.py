"""In which condition an engine's processes are: at work, stopped, in a debugger's hands.

Asked for only of engines under suspicion, so it may cost some milliseconds. What cannot be read is taken for
the answer that ends no engine.
"""

from __future__ import annotations

from collections.abc import Collection

from greenroom.runner.engines import processes
from greenroom.runner.systems import here


def traced(pids: Collection[int]) -> bool:
    """True when a debugger holds any of them: then it is left alone, however still it is."""
    return any(here.is_traced(pid) for pid in pids)


def stopped(pids: Collection[int]) -> bool:
    """True when a signal has stopped any of them, as SIGSTOP does."""
    return any(here.is_stopped(pid) for pid in pids)


def is_kept_waiting(leader: int) -> bool:
    """True when an engine is silent since the machine lets it wait for a disk or a processor, or a debugger
    holds it."""
    try:
        pids = processes.groups([leader])[leader]
    except OSError:
        return True
    return wants_to_work(pids) or traced(pids)


def wants_to_work(pids: Collection[int]) -> bool:
    """True when a thread of any of them would compute if the machine let it, or waits for a disk."""
    return any(here.wants_to_work(pid) for pid in pids)
