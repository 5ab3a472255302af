"""The scheduler's longer noes: complete sentences with the numbers that decided."""

from __future__ import annotations

from greenroom.actors.facts import Engine, Failure
from greenroom.actors.kernel.core import refuse
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.ledger import Account


def failure_of(engine: Engine) -> Failure:
    """Why an engine that should run does not, from how it ended."""
    end = engine.exit
    summary = end.summary if end is not None and end.summary else "The engine ended without a word."
    asked = end is not None and end.expected
    return Failure(
        kind="transient" if asked else "permanent",
        code="engine_ended" if asked else "engine_failed",
        message=summary,
        advice=f"`greenroom logs {engine.spec.engine_id}` shows its last words.",
        detail="\n".join(end.last_lines) if end is not None else "",
    )


def not_installable(backend: str, failure: Failure | None) -> Refusal:
    """What whoever waited for an installation hears when its job has ended without one."""
    if failure is None:
        message = f"The installation of {backend} has ended without one."
        return refuse("backend_not_installed", message, status=503, retry_after=10.0, subject=backend)
    return Refusal(
        code=failure.code,
        message=f"{backend} could not be installed: {failure.message}",
        advice=failure.advice,
        status=503 if failure.kind == "transient" else 500,
        retry_after=30.0 if failure.kind == "transient" else 0.0,
        subject=backend,
    )


def never_fits(model_ref: str, need: int, account: Account) -> Refusal:
    """A model that needs more than engines may ever use, with the numbers."""
    return refuse(
        "does_not_fit",
        f"{model_ref} needs {need / 2**30:.1f} GiB of memory; engines may use "
        f"{account.memory.budget / 2**30:.1f} GiB in all.",
        advice="Configure a smaller context, choose a smaller model, or raise memory_budget.",
        status=507,
        numbers={
            "needed": float(need),
            "budget": float(account.memory.budget),
            "promised": float(account.promised),
        },
        subject=model_ref,
    )
