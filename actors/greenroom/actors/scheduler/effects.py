"""What the scheduler wants done at the gates and on the progress board."""

from __future__ import annotations

from greenroom.actors.kernel.core import Effect
from greenroom.actors.values import Caller, Mode


class OpenGate(Effect, frozen=True, kw_only=True):
    """Let requests into an engine."""

    engine_id: str
    model_id: str
    mode: Mode
    backend: str
    endpoint: str
    slots: int = 0
    """Requests at once; 0 for no limit."""


class HoldGates(Effect, frozen=True, kw_only=True):
    """Requests are queued for these engines and no others: new requests queue behind them."""

    engine_ids: tuple[str, ...]


class CloseGate(Effect, frozen=True, kw_only=True):
    """Let no more requests in."""

    engine_id: str


class RemoveGates(Effect, frozen=True, kw_only=True):
    """Keep the gates of these engines only; the others are gone."""

    keep: tuple[str, ...]


class AdmitRequest(Effect, frozen=True, kw_only=True):
    """Put a request into an engine's gate, which is open: only the scheduler closes it, in a later turn."""

    engine_id: str
    request_id: str
    caller: Caller = Caller()
    slots: int = 1
    """Slots it takes."""


class LoadAgain(Effect, frozen=True, kw_only=True):
    """Load a model without a client waiting for it; its engine has just been ended for a better place."""

    model_id: str
    model_ref: str
    mode: Mode
    backend: str
    keep_alive: float | None = None
    """Seconds, as the last request wished; None for what is configured."""


class LeaveGate(Effect, frozen=True, kw_only=True):
    """An abandoned request leaves the gate it is in, if any."""

    request_id: str


class PublishRequestProgress(Effect, frozen=True, kw_only=True):
    """Show on the progress board what a request waits for."""

    request_id: str
    phase: str
    message: str
    follows: str = ""
    """The board's key of the job it waits for."""
    place: int = 0
    """In the queue; the first is 1."""
