"""What only the running daemon knows, for `why`."""

from __future__ import annotations

import os

from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.scheduler.messages import LedgerReading, ReadLedger
from greenroom.runner.diagnosis.live import Live
from greenroom.runner.http.context import Context
from greenroom.runner.http.engines import remote_readings
from greenroom.runner.http.progress_stream import sentence_of

_ANSWER_WITHIN = 2.0
"""Seconds within which the scheduler must answer."""


async def live_facts(context: Context) -> Live:
    """What the daemon can say now."""
    greenroom, ledger = context.greenroom, None
    problem = greenroom.home_problem or ""
    try:
        ledger = await greenroom.system.ask(ReadLedger(), timeout=_ANSWER_WITHIN)
    except KernelError as error:
        problem = problem or str(error)
    assert ledger is None or isinstance(ledger, LedgerReading)
    return Live(
        pid=os.getpid(),
        problem=problem,
        ledger=ledger,
        jobs={key: sentence_of(one) for key, one in greenroom.board.running().items()},
        requests=tuple(context.record.running()),
        remotes=tuple(remote_readings(greenroom)),
        verdicts=context.verdicts,
    )
