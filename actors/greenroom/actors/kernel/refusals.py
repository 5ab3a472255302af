"""The refusals of the kernel itself."""

from __future__ import annotations

from greenroom.actors.journal.port import JournalFull, NotWritten
from greenroom.actors.kernel.codec import CannotEncode
from greenroom.actors.kernel.core import Address, NotUnderstood
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.kernel.supervision import in_one_line

_WHERE = "The journal has it as command_parked, with the place of the failure."


def failed_twice(address: Address, error: BaseException) -> Refusal:
    """The command itself cannot be decided on."""
    message = f"{address} failed on this twice ({in_one_line(error)})."
    return Refusal(code="internal_error", message=message, advice=_WHERE, kind="internal")


def stuck(address: Address) -> Refusal:
    """What follows from the actor's state cannot be decided on, whatever was asked."""
    message = f"{address} cannot decide what to do next."
    advice = f"It retries automatically; try again later. {_WHERE}"
    return Refusal(code="internal_error", message=message, advice=advice, kind="unavailable", retry_after=5.0)


def not_understood(error: NotUnderstood) -> Refusal:
    return Refusal(
        code="not_understood",
        message=f"{error}.",
        advice="Send it to the actor that handles it.",
        kind="invalid",
    )


def bad_fields(command: str, problem: str) -> Refusal:
    return Refusal(code="bad_field", message=f"{command}: {problem}.", advice="Nothing was done.")


def not_taken(error: NotWritten) -> Refusal:
    """What was decided could not be stored, so nothing has happened."""
    code, advice = "journal_refused", "Try again; if it fails again, verify the journal."
    if isinstance(error, JournalFull):
        code, advice = "journal_full", "Make room on its disk. What needs nothing stored still works."
    elif isinstance(error, CannotEncode):
        code, advice = "not_storable", "This is a bug; please report it."
    return Refusal(
        code=code, message=f"The journal cannot store this: {error}.", advice=advice, kind="exhausted"
    )


def unrecorded(error: NotWritten) -> Refusal:
    """What someone waits for has been done and cannot be recorded."""
    return Refusal(
        code="journal_full" if isinstance(error, JournalFull) else "journal_refused",
        message=f"This was done, but the journal cannot store it: {error}.",
        advice="It will be stored as soon as there is room; until then, it may not be visible.",
        kind="exhausted",
    )
