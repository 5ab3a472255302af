"""Everything that the client raises: one tree, whose members say what happened and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from greenroom.actors.kernel.errors import ErrorKind

_KINDS = {
    404: "not_found",
    408: "unavailable",
    409: "conflict",
    412: "not_ready",
    429: "exhausted",
    499: "conflict",
    500: "internal",
    502: "unavailable",
    503: "unavailable",
    507: "exhausted",
}
IN_PROCESS = "unix:"
"""The address of a Greenroom in this very process."""
NOT_UNDERSTOOD = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError)
"""What reading an answer of a form that is not known raises; msgspec's errors are ValueErrors."""
_NO_NUMBERS = ("retry_after", "status")


class GreenroomError(Exception):
    """Base of everything the client raises.

    `str(error)` is `sentence`: what happened, then what to do.
    """

    def __init__(
        self,
        message: str,
        advice: str = "",
        *,
        code: str = "failed",
        kind: ErrorKind = "unavailable",
        numbers: Mapping[str, float] | None = None,
        retry_after: float = 0.0,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        """One sentence: what happened."""
        self.advice = advice
        """What to do; may be empty."""
        self.code = code
        """A word for programs that does not change, such as `model_not_found`."""
        self.kind: ErrorKind = kind
        """One of `invalid`, `not_found`, `conflict`, `not_ready`, `exhausted`, `unavailable`, `internal`."""
        self.numbers: Mapping[str, float] = numbers or {}
        """The figures behind it, such as bytes needed and free; empty if there are none."""
        self.retry_after = retry_after
        """Seconds after which a new attempt makes sense; 0 if it does not."""
        self.detail = detail
        """More lines about the cause, such as the end of a log."""

    @property
    def sentence(self) -> str:
        """`message` and `advice`, to be shown to a user."""
        if self.advice and self.advice in self.message:
            return self.message
        return f"{self.message} {self.advice}".strip()

    def __str__(self) -> str:
        return self.sentence


def _kind_of(status: int) -> ErrorKind:
    return cast("ErrorKind", _KINDS.get(status, "invalid" if status < 500 else "internal"))


class RequestRefused(GreenroomError):
    """Greenroom refused the request, or could not carry it out."""

    def __init__(self, status: int, fields: Mapping[str, Any], message: str, advice: str = "") -> None:
        """`fields` is the error object of the answer, `status` its HTTP status."""
        numbers = {
            name: float(value)
            for name, value in fields.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NO_NUMBERS
        }
        super().__init__(
            message,
            advice,
            code=str(fields.get("code") or ""),
            kind=fields.get("kind") or _kind_of(status),
            numbers=numbers,
            retry_after=float(fields.get("retry_after") or 0.0),
        )
        self.status = status
        self.fields = fields


class Unreachable(GreenroomError):
    """Nothing answers at the address any more, or the connection broke off."""

    def __init__(self, url: str, reason: str, *, sent: bool = True) -> None:
        self.sent = sent
        """Whether the request may have arrived: if not, it can be sent again without being done twice."""
        if url == IN_PROCESS:
            super().__init__(f"Greenroom {reason}.", code="not_running")
        else:
            advice = "See its log: greenroom logs"
            super().__init__(f"The Greenroom daemon at {url} {reason}.", advice, code="not_running")


class NotAvailable(GreenroomError):
    """There is no Greenroom to ask. `code` says why:

    `not_running`, `not_answering`, `not_started` (it was, and failed), `home_in_use` (another program has the
    data directory), `home_unusable`, `address_taken`, `journal_unusable`, `forked`, `closed`.
    """
