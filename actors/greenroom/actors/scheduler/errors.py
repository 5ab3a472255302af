"""The scheduler's refusals: complete sentences with the numbers that decided."""

from __future__ import annotations

from greenroom.actors.installer.errors import kind_of
from greenroom.actors.kernel.core import refuse
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.scheduler.backend_choice import NotInstalled
from greenroom.actors.scheduler.ledger import Account
from greenroom.actors.scheduler.state import BreakerState, Waiting, counts_against_model
from greenroom.actors.sizes import format_size
from greenroom.actors.values import Engine, EngineSpec, Failure


def failure_of(engine: Engine) -> Failure:
    """Why an engine is not running, from how it ended."""
    end = engine.exit
    known = engine.failure or (end.failure if end is not None else None)
    if known is not None:
        return known
    if end is None and engine.fault:
        spec = engine.spec
        return Failure(
            kind="permanent",
            code="engine_stalled",
            message=f"The {spec.backend} engine for {spec.model_ref} was stopped: {engine.fault}.",
            advice=f"See its log: greenroom logs {spec.engine_id}",
        )
    summary = end.summary if end is not None and end.summary else "The engine stopped for an unknown reason."
    code = "engine_failed"
    if end is not None and end.lost:
        code, summary = "engine_lost", f"The engine for {engine.spec.model_ref} is gone: {summary}."
    elif end is not None and end.expected:
        code = "engine_ended"
    # It neither exited nor died of a signal, so it never ran: not its own fault.
    never_ran = end is not None and end.code is None and not end.signal
    return Failure(
        kind="permanent" if code == "engine_failed" else "transient",
        code=code,
        message=summary,
        advice=f"See its log: greenroom logs {engine.spec.engine_id}",
        detail="\n".join(end.last_lines) if end is not None else "",
        blame="machine" if never_ran and code == "engine_failed" else "",
    )


def layers_missed(engine: Engine) -> Failure:
    """It has loaded less on devices than was placed there, and may not."""
    spec, loaded = engine.spec, engine.loaded
    assert loaded is not None
    reason = f": {loaded.reason}" if loaded.reason else ""
    return Failure(
        kind="transient",
        code="device_unused",
        message=(
            f"{spec.model_ref} may be loaded only on a graphics device (require_device), and {spec.backend} "
            f"has loaded {loaded.layers} of {spec.layers} layers there{reason}."
        ),
        advice=f"See its log: greenroom logs {spec.engine_id}",
        blame="machine",
    )


def load_failed(spec: EngineSpec, failure: Failure, retry_after: float = 0.0) -> Refusal:
    """For requests that waited for a load. The failure's blame decides whether they may be retried."""
    kind = kind_of(failure.code, passing=not counts_against_model(failure))
    return refuse(
        failure.code,
        failure.message,
        advice=failure.advice,
        kind=kind,
        retry_after=retry_after,
        subject=spec.model_ref,
    )


def undecided(waiting: Waiting) -> Refusal:
    """Deciding on this request raised; the journal has it as `command_parked`."""
    return refuse(
        "internal_error",
        f"Greenroom failed while deciding where {waiting.model_ref} can run.",
        advice="See the error: greenroom log --kind command_parked. Other models are not affected.",
        kind="internal",
        subject=waiting.model_ref,
    )


def never_started(spec: EngineSpec) -> Failure:
    """An engine that its runner will never start, or that no runner knows."""
    return Failure(
        kind="transient",
        code="engine_lost",
        message=f"The engine for {spec.model_ref} is gone for an unknown reason.",
    )


def not_installable(backend: str, failure: Failure | None, again_in: float = 0.0) -> NotInstalled:
    """For requests that waited for an installation whose job has failed or was cancelled."""
    again = f" It will be retried in {again_in:.0f}s." if again_in else ""
    if failure is None:
        return NotInstalled(
            code="backend_not_installed",
            message=f"{backend} was not installed.{again}",
            kind="unavailable",
            retry_after=again_in or 10.0,
            subject=backend,
            backends=(backend,),
        )
    passing = failure.kind == "transient" or again_in > 0
    return NotInstalled(
        code=failure.code,
        message=f"{backend} could not be installed: {failure.message}{again}",
        advice=failure.advice,
        kind=kind_of(failure.code, passing=passing),
        retry_after=again_in or (30.0 if passing else 0.0),
        subject=backend,
        backends=(backend,),
    )


def breaker_open(waiting: Waiting, backend: str, breaker: BreakerState, left: float) -> Refusal:
    times = "once" if breaker.failures == 1 else f"{breaker.failures} times"
    return refuse(
        "breaker_open",
        f"{waiting.model_ref} failed {times} on {backend} and will be retried in "
        f"{left:.0f}s. The last failure: {breaker.reason}",
        kind="unavailable",
        retry_after=left,
        subject=waiting.model_ref,
    )


def not_ready_yet(waiting: Waiting, waited: float, text: str) -> Refusal:
    """The request has reached its limit; what it waited for continues."""
    return refuse(
        "not_ready_yet",
        f"{waiting.model_ref} is not ready after {waited:.0f}s; it is still {text}.",
        advice="It continues in the background; try again.",
        kind="unavailable",
        retry_after=10.0,
        subject=waiting.model_ref,
    )


def unloaded(waiting: Waiting) -> Refusal:
    """A user ended the load it waits for."""
    return refuse(
        "unloaded",
        f"{waiting.model_ref} was unloaded while it was loading.",
        advice="Send the request again to load it.",
        kind="unavailable",
        retry_after=5.0,
        subject=waiting.model_ref,
    )


def pinned(waiting: Waiting, need: int, held: int, account: Account, device: str = "") -> Refusal:
    """The model would fit if pinned ones did not hold the memory; `device` is a name for people."""
    return refuse(
        "no_room",
        f"{waiting.model_ref} needs {format_size(need)} of {_memory_of(device)}; pinned models hold "
        f"{format_size(held)} of the {format_size(account.memory.budget)} that engines may use.",
        advice="Unload a pinned model, or give it a finite keep_alive.",
        kind="exhausted",
        numbers={"needed": float(need), "budget": float(account.memory.budget), "pinned": float(held)},
        subject=waiting.model_ref,
    )


def no_device_for(model_ref: str, backend: str) -> Refusal:
    """It must lie on graphics devices, and none can be used."""
    return refuse(
        "device_required",
        f"{model_ref} may be loaded only on a graphics device (require_device), and {backend} has none here.",
        advice="See the devices, and why they are not used: greenroom devices",
        kind="exhausted",
        subject=model_ref,
    )


def never_fits(model_ref: str, need: int, account: Account, device: str = "", context: int = 0) -> Refusal:
    """The model needs more than engines may ever use; `device` is a name for people, `context` the tokens of
    its slot."""
    setting = "lower gpu_headroom" if device else "raise memory_budget"
    return refuse(
        "does_not_fit",
        f"{model_ref} needs {format_size(need)} of {_memory_of(device)}; engines may use "
        f"{format_size(account.memory.budget)} in total.",
        advice=f"Configure a smaller context (greenroom configure {model_ref} --context N), choose a smaller "
        f"model, or {setting}.",
        kind="exhausted",
        numbers={
            "needed": float(need),
            "budget": float(account.memory.budget),
            "promised": float(account.reserved),
            **({"context_size": float(context)} if context > 0 else {}),
        },
        subject=model_ref,
    )


def _memory_of(device: str) -> str:
    return f"the memory of {device}" if device else "memory"
