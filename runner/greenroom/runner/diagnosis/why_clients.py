"""How recent requests ended, for all clients or for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from greenroom.runner.diagnosis.explanation import Explanation, Remedy, counted, full_stop, listed
from greenroom.runner.diagnosis.recorded_request import route_of
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.record.row import Ending, Row
from greenroom.runner.units import format_duration

_DAY = 86_400.0
_CAUSES = 5
"""Reasons of refusals that are shown."""
_ENDS: Mapping[Ending, tuple[str, str]] = {
    "whole": ("was answered", "were answered"),
    "refused": ("was refused", "were refused"),
    "left": ("lost its client", "lost their clients"),
    "died": ("lost its engine", "lost their engines"),
    "cut": ("was cut off", "were cut off"),
    "cancelled": ("was cancelled", "were cancelled"),
    "": ("is under way", "are under way"),
}
_TO_SEE = Remedy(aim="To see them", command="greenroom requests")
_NO_ROWS = "The record of requests has none: it is empty, turned off, or not beside this journal."


def is_of(row: Row, client: str) -> bool:
    """Whether a request came from a client: a key or a program by its name, or an address."""
    return row.caller == client or row.caller.startswith(f"{client} (")


def names_of_clients(rows: Collection[Row]) -> set[str]:
    return {name for row in rows for name in (row.caller, row.caller.partition(" (")[0]) if name}


def why_requests(rows: Sequence[Row], now: float, client: str = "") -> Explanation:
    """How the requests of the last day ended and why some failed, for one client if one is given."""
    mine = [one for one in rows if now - one.at <= _DAY and (not client or is_of(one, client))]
    mine.sort(key=lambda one: one.at)
    of = f" from {client}" if client else ""
    if not mine:
        older = [one for one in rows if not client or is_of(one, client)]
        answer = f"No request{of} arrived in the last day." if rows else _NO_ROWS
        if older:
            answer = f"No request{of} has arrived since {moment(max(one.at for one in older), now)}."
        return Explanation(state="none", cause="none", answer=answer, remedies=(_TO_SEE,))
    ends = Counter(one.outcome for one in mine)
    told = [f"{ends[end]:,} {words[ends[end] != 1]}" for end, words in _ENDS.items() if ends[end]]
    troubled = len(mine) - ends["whole"] - ends[""]
    since = f"since {clock(mine[0].at, now)}"
    found = Explanation(
        state="well" if not troubled else "unwell",
        cause=max((end for end in ends if end not in ("", "whole")), key=ends.__getitem__, default="whole"),
        answer=f"Of {counted(len(mine), 'request')}{of} {since}, {listed(told)}.",
        numbers={"requests": float(len(mine))} | {end or "running": float(n) for end, n in ends.items()},
        also=tuple(_reasons(mine, now)),
        remedies=(_TO_SEE,),
    )
    last = next((one for one in reversed(mine) if one.outcome not in ("", "whole")), None)
    if last is not None:
        aim = "The last that failed"
        found.remedies += (Remedy(aim=aim, command=f"greenroom why {last.id}"),)
    return found


def _reasons(rows: Sequence[Row], now: float) -> Iterator[str]:
    """The reasons of those that failed, the most frequent first, and which took longest."""
    failed = [one for one in rows if one.outcome not in ("", "whole", "left")]
    for (status, code), number in Counter((one.status, one.code) for one in failed).most_common(_CAUSES):
        last = next(one for one in reversed(failed) if (one.status, one.code) == (status, code))
        # A stream that has begun ends with its error, and has the status of its beginning.
        what = f"{code} ({status})" if code and status >= 400 else code or last.outcome
        which = f"{last.id}, {route_of(last)}"
        reason = full_stop(last.sentence or "without a reason")
        yield f"{what}: {counted(number, 'time')}, last at {clock(last.at, now)} ({which}): {reason}"
    whole = [one for one in rows if one.outcome == "whole" and one.family != "management"]
    if whole:
        slow = max(whole, key=lambda one: one.seconds)
        yield f"The slowest answer took {format_duration(slow.seconds)} ({slow.id}, {route_of(slow)})."
