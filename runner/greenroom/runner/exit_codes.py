"""What `greenroom` exits with (documented in docs/cli.md), and which errors that stands for."""

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


_OF_CODES = {
    "not_running": NOT_RUNNING,
    "not_answering": NOT_RUNNING,
    "home_unusable": NOT_RUNNING,
    "not_started": NOT_RUNNING,
    "home_in_use": ALREADY_RUNNING,
    "address_taken": PORT_TAKEN,
    "journal_unusable": JOURNAL,
    "bad_setting": USAGE,
    "backend_not_installed": NOT_INSTALLED,
}


def exit_code_of(code: str) -> int:
    """What a command exits with that failed with an error of this `code`."""
    return _OF_CODES.get(code, FAILED)


def error_code_of(exit_code: int) -> str:
    """The `code` of the error with which a daemon did not start, by its exit code."""
    known = (PORT_TAKEN, JOURNAL, USAGE)
    return next((code for code, found in _OF_CODES.items() if found == exit_code in known), "not_started")
