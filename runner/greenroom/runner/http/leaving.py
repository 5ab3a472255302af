"""Whoever waited for a job and has gone is not counted any more; the job goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from greenroom.actors.kernel.core import Address, Command
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.kernel.reply import Reply
from greenroom.actors.kernel.system import ActorSystem


@contextlib.contextmanager
def counted(system: ActorSystem, reply: Reply, to: Address, leave: Command) -> Iterator[None]:
    """While this is left without a reply, `to` is told that who waited for it has gone."""
    try:
        yield
    finally:
        if not reply.done():
            # A system that stops counts nobody.
            with contextlib.suppress(KernelError):
                system.tell(to, leave)
