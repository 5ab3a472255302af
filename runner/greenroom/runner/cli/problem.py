"""The exception that commands end with."""

from __future__ import annotations

from greenroom.runner import exit_codes
from greenroom.runner.client.errors import GreenroomError


class Problem(GreenroomError):
    """Shown to the user as it is, without a traceback; it says what the command exits with."""

    def __init__(
        self, message: str, advice: str = "", *, code: int = exit_codes.FAILED, detail: str = ""
    ) -> None:
        super().__init__(message, advice, detail=detail)
        self.exit_code = code


def exit_code_of(error: GreenroomError) -> int:
    """What a command exits with that ends with this error."""
    return error.exit_code if isinstance(error, Problem) else exit_codes.exit_code_of(error.code)
