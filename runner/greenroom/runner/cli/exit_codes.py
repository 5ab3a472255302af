"""What `greenroom` exits with (documented in docs/cli.md), and the exception that commands end with."""

from __future__ import annotations

OK = 0
FAILED = 1
"""The request was understood and did not succeed."""
USAGE = 2
"""The command line or a setting is wrong."""
NOT_RUNNING = 3
"""No daemon runs, or it could not be started."""
ALREADY_RUNNING = 4
"""Another daemon holds the data directory."""
PORT_TAKEN = 5
"""Another program has the daemon's address."""
JOURNAL = 6
"""The journal is damaged, or written by a newer Greenroom."""
NOT_INSTALLED = 7
"""A backend is not installed and the policy forbids installing it."""
INTERRUPTED = 130
"""Ended by Ctrl-C."""


class Problem(Exception):
    """Shown to the user as it is, without a traceback."""

    def __init__(self, message: str, advice: str = "", *, code: int = FAILED, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.exit_code = code
        self.detail = detail
        """More lines about the cause, such as the end of a log; shown before the message."""

    def __str__(self) -> str:
        if self.advice and self.advice in self.message:
            return self.message
        return f"{self.message} {self.advice}".strip()
