"""The scheduler's longer refusals: complete sentences with the numbers that decided."""

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
    """Why an engine that should run does not, from how it ended."""
    end = engine.exit
    told = engine.failure or (end.failure if end is not None else None)
    if told is not None:
        return told
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
    # One that neither exited nor died of a signal has not been seen to run: that was not its own doing.
    initial_volatile = end is not None and end.code is None and not end.signal
    return Failure(
        kind="permanent" if code == "engine_failed" else "transient",
        code=code,
        message=summary,
        advice=f"See its log: greenroom logs {engine.spec.engine_id}",
        detail="\n".join(end.last_lines) if end is not None else "",
        blame="machine" if initial_volatile and code == "engine_failed" else "",
    )


def load_failed(spec: EngineSpec, failure: Failure, retry_after: float = 0.0) -> Refusal:
    """What whoever waited for a load hears, with the failure's own code. Whose failure it was decides whether
    it is worth asking again."""
    kind = kind_of(failure.code, passing=not counts_against_model(failure))
    return Refusal(
        code=failure.code,
        message=failure.message,
        advice=failure.advice,
        kind=kind,
        retry_after=retry_after,
        subject=spec.model_ref,
    )


def undecided(waiting: Waiting) -> Refusal:
    """Deciding on this request raised: a fault of ours, which the journal has as `command_parked`."""
    return refuse(
        "internal_error",
        f"Greenroom failed while deciding where {waiting.model_ref} can run.",
        advice="See the error: greenroom log --kind command_parked. Other models are not affected.",
        kind="internal",
        subject=waiting.model_ref,
    )


def never_started(spec: EngineSpec) -> Failure:
    """An engine whose runner has not taken it, or that nobody knows any more."""
    return Failure(
        kind="transient",
        code="engine_lost",
        message=f"The engine for {spec.model_ref} is gone for an unknown reason.",
    )


def not_installable(backend: str, failure: Failure | None, again_in: float = 0.0) -> NotInstalled:
    """What whoever waited for an installation hears when its job has ended without one."""
    again = f" It will be retried in {again_in:.0f} s." if again_in else ""
    if failure is None:
        message = f"{backend} was not installed.{again}"
        return NotInstalled(
            code="backend_not_installed",
            message=message,
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
    """A model that keeps dying and is left alone for a while."""
    return refuse(
        "breaker_open",
        f"{waiting.model_ref} failed {breaker.failures} times on {backend} and will be retried in "
        f"{left:.0f} s. The last failure: {breaker.reason}",
        kind="unavailable",
        retry_after=left,
        subject=waiting.model_ref,
    )


def not_stored() -> Refusal:
    """A request that would need an event while the journal takes none."""
    return refuse(
        "journal_full",
        "No model can be loaded because the journal cannot be written. Loaded models still work.",
        advice="Free space on the disk that holds Greenroom's data directory, then try again.",
        kind="exhausted",
    )


def not_ready_yet(waiting: Waiting, waited: float, text: str) -> Refusal:
    """Whoever has waited as long as anybody may; what it waited for goes on."""
    return refuse(
        "not_ready_yet",
        f"{waiting.model_ref} is not ready after {waited:.0f} s; it is still {text}.",
        advice="It continues in the background; try again.",
        kind="unavailable",
        retry_after=10.0,
        subject=waiting.model_ref,
    )


def unloaded(waiting: Waiting) -> Refusal:
    """The load it waits for was ended by hand."""
    return refuse(
        "unloaded",
        f"{waiting.model_ref} was unloaded while it was loading.",
        advice="Send the request again to load it.",
        kind="unavailable",
        retry_after=5.0,
        subject=waiting.model_ref,
    )


def pinned(waiting: Waiting, need: int, held: int, account: Account, device: str = "") -> Refusal:
    """A model that would fit if pinned ones did not hold the room; `device` is its name for people."""
    return refuse(
        "no_room",
        f"{waiting.model_ref} needs {format_size(need)} of {_memory_of(device)}; pinned models hold "
        f"{format_size(held)} of the {format_size(account.memory.budget)} that engines may use.",
        advice="Unload a pinned model, or give it a finite keep_alive.",
        kind="exhausted",
        numbers={"needed": float(need), "budget": float(account.memory.budget), "pinned": float(held)},
        subject=waiting.model_ref,
    )


def never_fits(model_ref: str, need: int, account: Account, device: str = "") -> Refusal:
    """A model that needs more than engines may ever use, with the numbers; `device` is for people."""
    setting = "lower gpu_headroom" if device else "raise memory_budget"
    return refuse(
        "does_not_fit",
        f"{model_ref} needs {format_size(need)} of {_memory_of(device)}; engines may use "
        f"{format_size(account.memory.budget)} in total.",
        advice=f"Configure a smaller context, choose a smaller model, or {setting}.",
        kind="exhausted",
        numbers={
            "needed": float(need),
            "budget": float(account.memory.budget),
            "promised": float(account.reserved),
        },
        subject=model_ref,
    )


def _memory_of(device: str) -> str:
    return f"the memory of {device}" if device else "memory"
