"""What became of one request, from its row in the record of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from greenroom.runner.diagnosis.explanation import Explanation, Remedy, counted, full_stop, listed
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.record.row import Row
from greenroom.runner.units import format_duration

Recorded = Callable[[str], Row | None]
"""Finds the row of a request."""

_UNREAD = "its client did not read the answer while others waited for its place."


def of_row(row: Row, now: float) -> Explanation:
    """First how it ended, then what its time went into."""
    state, answer = _ended(row, now)
    return Explanation(
        state=state,
        cause=row.code or row.outcome or state,
        answer=f"{answer}{_spent(row)}",
        numbers=dict(_numbers(row)),
        remedies=(
            Remedy(aim="To see all that is recorded of it", command=f"greenroom requests show {row.id}"),
        ),
    )


def named(row: Row) -> str:
    """`request r-… (POST /engines/unload, from curl (process 4711))`."""
    return f"request {row.id} ({route_of(row)}, from {row.caller or 'an unknown client'})"


def route_of(row: Row) -> str:
    model = row.model or row.asked
    return f"{row.method} {row.path}" + (f" to {model}" if model else "")


def _ended(row: Row, now: float) -> tuple[str, str]:
    who = f"Request {named(row).removeprefix('request ')}"
    at, after = moment(row.at + row.seconds, now), format_duration(row.seconds)
    because = f": {full_stop(row.sentence)}" if row.sentence else "."
    match row.outcome:
        case "" if not row.engine:
            return "waiting", f"{who} has waited for {after}."
        case "":
            return "answering", f"{who} is being answered by engine {row.engine}; it arrived {after} ago."
        case "whole" if row.family == "management":
            return "served", f"{who} was carried out at {at}, in {after}."
        case "whole":
            return "served", f"{who} got its whole answer at {at}, {after} after it arrived."
        case "left":
            return "left", f"{who} lost its client at {at}, after {after}: it disconnected before the end."
        case "died":
            return "failed", f"{who} lost its engine {row.engine} at {at}, after {after}{because}"
        case "cut":
            why = because if row.sentence else f": {_UNREAD}"
            return "failed", f"{who} was cut off at {at}, after {after}{why}"
        case "cancelled":
            return "failed", f"{who} was cancelled at {at}, after {after}{because}"
        case "refused":
            return "refused", f"{who} was refused with {row.status} at {at}{because}"


def _spent(row: Row) -> str:
    """Sentences about its waits and its tokens, each after a space."""
    waits = [
        *([f"{format_duration(row.queued)} in the queue"] if row.queued >= 0.001 else []),
        *([f"{format_duration(row.installing)} for the backend"] if row.installing else []),
        *([f"{format_duration(row.loading)} for the model to be loaded"] if row.loading else []),
    ]
    told = f" It waited {listed(waits)}." if waits else ""
    if row.first_token is not None:
        told += f" The first token came after {format_duration(row.first_token)}."
    if row.tokens_out is not None:
        speed = f", {row.tokens_per_second:.1f} a second" if row.tokens_per_second is not None else ""
        read = f" after {counted(row.tokens_in, 'token')} of prompt" if row.tokens_in is not None else ""
        about = "about " if row.estimated else ""
        told += f" The answer has {about}{counted(row.tokens_out, 'token')}{read}{speed}."
    return told + _restored(row)


def _restored(row: Row) -> str:
    """What of its prompt was restored from the disk, or why nothing was."""
    if not row.tokens_restored:
        return f" Nothing of its prompt was restored: {row.restored_why}." if row.restored_why else ""
    saved = clock(row.restored_from, row.at)
    of = f" of {row.tokens_in:,}" if row.tokens_in is not None else ""
    read = ""
    if row.tokens_in is not None and row.tokens_cached is not None:
        read = f"; {row.tokens_in - row.tokens_cached:,} had to be read"
    return (
        f" {row.tokens_restored:,}{of} tokens of its prompt were restored from {saved}, "
        f"{row.restored_why}{read}. Reading the restored ones again would have taken "
        f"{format_duration(row.seconds_saved)}."
    )


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    restored = "tokens_restored", "seconds_saved"
    for name in ("status", "seconds", "queued", "installing", "loading", "first_token", *restored):
        if value := getattr(row, name):
            yield name, float(value)
    for name in ("tokens_in", "tokens_out", "tokens_per_second", "tokens_cached"):
        if (value := getattr(row, name)) is not None:
            yield name, float(value)
