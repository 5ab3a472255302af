"""Where the actors of a Greenroom are found."""

from __future__ import annotations

from greenroom.actors.kernel.core import Address

INSTALLER = Address("installer")

SCHEDULER = Address("scheduler")

LIBRARY = Address("library")

DAEMON = Address("daemon")


def runner_address(backend: str) -> Address:
    """Where the runner of a backend is."""
    return Address(f"runner/{backend}")
