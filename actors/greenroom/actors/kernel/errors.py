"""What asking an actor can raise, and why an actor refuses."""

from __future__ import annotations

from typing import Literal

import msgspec

ErrorKind = Literal["invalid", "not_found", "conflict", "not_ready", "exhausted", "unavailable", "internal"]
"""
invalid      the command itself is wrong
not_found    it names something that does not exist
conflict     the present state forbids it
not_ready    something must be set up first, or cannot be set up here; trying again does not help
exhausted    there is no room: in memory, on the disk, in a queue
unavailable  try again later
internal     a fault of the program
"""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an actor refuses a command, complete enough to show to a person."""

    code: str
    """Stable word for programs, such as `backend_not_installed`."""
    kind: ErrorKind = "invalid"
    message: str
    """One sentence: what happened."""
    advice: str = ""
    """What to do next."""
    retry_after: float = 0.0
    """Seconds; 0 when trying again later would not help."""
    numbers: dict[str, float] = {}
    """The figures behind the decision, such as bytes needed and free."""
    subject: str = ""
    """What it is about."""

    def sentence(self) -> str:
        """What happened, then what to do."""
        return f"{self.message} {self.advice}".strip()


class KernelError(Exception):
    """Base of everything the kernel raises."""


class Refused(KernelError):
    """The actor said no."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.sentence())
        self.refusal = refusal


class ActorStopped(KernelError):
    """No answer will come: the actor stopped or was rebuilt. The question may be asked again."""


class AskExpired(KernelError):
    """The deadline of an ask passed before the answer."""


class MailboxFull(KernelError):
    """The actor has too much to do already."""


class UnknownActor(KernelError):
    """No actor has that address."""


class Forked(KernelError):
    """The system runs in the process this one was forked from; here there are no threads of its actors."""


class StartFailed(KernelError):
    """An actor could not be started, so the system was not."""


class SystemFailed(KernelError):
    """The system stopped itself because going on could have falsified its journal."""
