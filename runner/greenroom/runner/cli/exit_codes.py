"""What `greenroom` exits with; part of its interface, documented in docs/cli.md."""

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
"""Somebody else answers on, or holds, the daemon's address."""
JOURNAL = 6
"""The journal is damaged, or written by a newer Greenroom."""
NOT_INSTALLED = 7
"""A backend is not installed and the policy forbids installing it."""
INTERRUPTED = 130
"""Ended by Ctrl-C."""
