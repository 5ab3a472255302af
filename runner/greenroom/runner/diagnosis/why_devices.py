"""Which graphics devices the daemon found, and why one is not used."""

from __future__ import annotations

from greenroom.actors.daemon_log import DaemonStarted, DevicesChanged
from greenroom.actors.graphics import GraphicsDevice
from greenroom.runner.diagnosis.explanation import Explanation, Remedy
from greenroom.runner.diagnosis.history import History, latest
from greenroom.runner.diagnosis.why_daemon import devices
from greenroom.runner.units import format_size

_LOOK = Remedy(aim="To look again, by backend", command="greenroom devices")
_PROCESSOR = "Models run on the processor."


def why_devices(history: History) -> Explanation:
    """As the daemon last saw them: first what is wrong, then what can be used."""
    if latest(history.daemons, DaemonStarted) is None:
        return Explanation(
            state="unknown",
            cause="never_started",
            answer="According to this journal, no daemon has looked for graphics devices yet.",
            remedies=(_LOOK,),
        )
    usable = [one for one in history.daemon.devices if one.problem is None]
    troubles = tuple(devices(history))
    able = tuple(f"{_described(one)} can be used." for one in usable)
    changes = [one.step for one in history.daemons if isinstance(one.event, DevicesChanged)]
    found = Explanation(
        state="usable" if usable else "none",
        cause="found" if usable else "none_found",
        numbers={"usable": float(len(usable)), "problems": float(len(troubles))},
        steps=tuple(changes[-8:]),
        remedies=(_LOOK,),
    )
    if troubles:
        found.cause = "problem"
        found.answer = troubles[0] if usable else f"{troubles[0]} {_PROCESSOR}"
        found.also = (*troubles[1:], *able)
    elif usable:
        found.answer, found.also = able[0], able[1:]
    else:
        found.answer = f"No graphics device was found. {_PROCESSOR}"
    return found


def _described(one: GraphicsDevice) -> str:
    if not one.total:
        return one.name
    return f"{one.name} ({format_size(one.total)}{' of shared main memory' if one.is_shared else ''})"
