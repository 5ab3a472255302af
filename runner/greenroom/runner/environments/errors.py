"""The installer's exceptions, subclasses of the client's."""

from __future__ import annotations

from pathlib import Path

from greenroom.actors.kernel.errors import Forked, KernelError, Refusal, Refused
from greenroom.runner.client.errors import GreenroomError, NotAvailable


class NoEnvironment(GreenroomError):
    """There is no such environment, or it could not be built. `code` says why:

    `no_such_version`, `unsupported_platform` (no wheel fits), `no_such_python`, `unreachable`,
    `unauthorized`, `hash_mismatch`, `no_space`, `bad_lock`, `no_such_program`, `not_installed`, `cancelled`,
    and others.
    """


class BadRequirement(NoEnvironment, ValueError):
    """An invalid requirement, Python, index or lock. Nothing was started."""

    def __init__(self, message: str, advice: str = "", *, code: str = "bad_requirement") -> None:
        super().__init__(message, advice, code=code, kind="invalid")


_OTHERS = "Ask for other versions, or for another Python (`python=`)"
_FOLDER = "give the installer a folder on another disk"
FREE_SPACE = f"Free some space, or {_FOLDER}."
_ADVICE = {
    "cancelled": "Call it again: completed downloads are kept.",
    "no_space": FREE_SPACE,
    "noexec": f"Mount it without noexec, or {_FOLDER}.",
    "no_permission": "Make sure that you can write there, or give the installer another folder.",
    "read_only": "Make it writable, or give the installer another folder.",
    "no_such_version": f"{_OTHERS}, or name an index (`index=`).",
    "unsupported_platform": f"Only wheels are installed. {_OTHERS}.",
    "fault": "Please report it: its journal has the details.",
}
_WHY = "`why` shows the output."


def refused(refusal: Refusal, requirement: str) -> NoEnvironment:
    """Why an environment could not be built or removed, with advice for programs."""
    advice = _ADVICE.get(refusal.code, refusal.advice)
    if "greenroom why" in advice:
        advice = _WHY
    if refusal.message.endswith(" is not on the package index."):
        advice = "Check its name, or name the index that has it (`index=`)."
    return NoEnvironment(
        refusal.message.replace(refusal.subject, requirement, 1)
        if refusal.code == "cancelled" and refusal.subject
        else refusal.message,
        advice,
        code=refusal.code,
        kind="not_ready" if refusal.code == "hash_mismatch" else refusal.kind,
        numbers=refusal.numbers,
        retry_after=refusal.retry_after,
    )


def failed(error: KernelError, home: Path, requirement: str = "") -> GreenroomError:
    """The installer's exception for one of the actor system."""
    if isinstance(error, Refused):
        return refused(error.refusal, requirement)
    if isinstance(error, Forked):
        return forked(home)
    return NotAvailable(
        f"The installer of {home} is not running: {error}.", "Close it and open another one.", code="closed"
    )


def forked(home: Path) -> NotAvailable:
    return NotAvailable(
        f"The installer of {home} was opened before this process was forked.",
        "Open it after the fork.",
        code="forked",
        kind="invalid",
    )


def closed(home: Path) -> NotAvailable:
    return NotAvailable(
        f"The installer of {home} is closed.", "Open another one.", code="closed", kind="invalid"
    )
