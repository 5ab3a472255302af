"""The one exception commands end with: what happened, what to do next, and the exit code."""

from __future__ import annotations

from greenroom.runner.cli import exit_codes


class Problem(Exception):
    """Shown to the user as it is, without a traceback."""

    def __init__(
        self, message: str, advice: str = "", *, code: int = exit_codes.FAILED, detail: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.exit_code = code
        self.detail = detail
        """More lines for whoever wants to know why, such as the end of a log; shown before the message."""

    def __str__(self) -> str:
        if self.advice and self.advice in self.message:
            return self.message
        return f"{self.message} {self.advice}".strip()
