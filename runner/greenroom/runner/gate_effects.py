"""Carries out the scheduler's effects, at once: none of them waits."""

from __future__ import annotations

from greenroom.actors.gates import GateBoard
from greenroom.actors.kernel.core import Effect
from greenroom.actors.progress import ProgressBoard, request_job
from greenroom.actors.scheduler.effects import (
    AdmitRequest,
    CloseGate,
    HoldGates,
    LeaveGate,
    OpenGate,
    PublishRequestProgress,
    RemoveGates,
)
from greenroom.actors.values import Progress


class GateEffects:
    """Opens and closes gates, admits granted requests, and publishes what the others wait for."""

    def __init__(self, gates: GateBoard, board: ProgressBoard) -> None:
        self._gates = gates
        self._board = board

    def perform(self, effect: Effect, cause: str) -> None:
        match effect:
            case OpenGate() as e:
                self._gates.open(e.engine_id, e.model_id, e.mode, e.backend, e.endpoint, e.slots)
            case HoldGates(engine_ids=held):
                self._gates.hold(held)
            case CloseGate(engine_id=one):
                self._gates.close(one)
            case RemoveGates(keep=keep):
                self._gates.keep(keep)
            case AdmitRequest(engine_id=one, request_id=request) as e:
                self._gates.reserve(one, request, e.caller, e.slots)
                self._board.clear(request_job(request))
            case LeaveGate(request_id=request):
                self._gates.leave(request)
                self._board.clear(request_job(request))
            case PublishRequestProgress() as e:
                self._board.publish(
                    Progress(
                        job=request_job(e.request_id),
                        phase=e.phase,
                        message=e.message,
                        follows=e.follows,
                        place=e.place,
                    )
                )
            case _:
                raise TypeError(f"no gate performs {type(effect).__name__} ({cause})")
