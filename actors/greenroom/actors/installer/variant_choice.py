"""Variants of a backend: which one is meant, which one is offered, and which one follows a failure."""

from __future__ import annotations

from greenroom.actors.installer.state import BackendInstallState, JobState, fits
from greenroom.actors.kernel.core import refuse
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.values import BackendFacts, Failure
from greenroom.actors.variants import BEST, USUAL


def named(variant: str, facts: BackendFacts) -> str:
    """A variant as requests name it here: the usual one has one name, whatever it is."""
    return USUAL if variant and variant == facts.usual else variant


def best(backend: BackendInstallState, facts: BackendFacts, *, failed: str = "") -> str:
    """The variant that the machine would use, if this one has `failed`.

    1. The one in the configuration, unless it is known not to run here.
    2. The first in the order that has not failed for good on these devices.
    3. The usual one, if the order is unknown.
    """
    barred = {failed, *(name for name, why in backend.tried.items() if why.kind == "permanent")}
    usable = [one.name for one in backend.ranked if one.usable and one.name not in barred]
    if facts.variant in usable or (facts.variant and not backend.ranked and facts.variant != failed):  # 1
        return named(facts.variant, facts)
    return named(usable[0], facts) if usable else USUAL  # 2, 3


def wished(variant: str, backend: BackendInstallState, facts: BackendFacts) -> str:
    """The variant that a request means; empty for any."""
    if variant != BEST:
        return variant
    return "" if _is_compiled(backend, facts) else best(backend, facts)


def _is_compiled(backend: BackendInstallState, facts: BackendFacts) -> bool:
    """Whether the one in use was compiled on this machine, which a user has chosen over all others."""
    return backend.usable is not None and backend.usable.variant in facts.versions


def to_build(variant: str, backend: BackendInstallState) -> str:
    """The variant of a new installation, as it is stored: if none is named, that of the one in use."""
    if not variant:
        usable = backend.usable
        return usable.variant if usable is not None and usable.managed else ""
    return "" if variant == USUAL else variant


def offered(backend: BackendInstallState, facts: BackendFacts) -> str:
    """The name of a variant that is better than the one in use and not installed; empty if there is none."""
    usable = backend.usable
    if usable is None or not usable.managed or not backend.ranked or _is_compiled(backend, facts):
        return ""
    better = best(backend, facts)
    there = any(fits(one, "", better) for one in backend.whole)
    name = facts.usual if better == USUAL else better
    return "" if there or to_build(better, backend) in backend.declined else name


def after(backend: BackendInstallState, job: JobState, failure: Failure, facts: BackendFacts) -> str:
    """The variant to try after one has failed; empty if none is left."""
    if not job.best or not job.variant or failure.kind != "permanent":
        return ""
    return best(backend, facts, failed=job.variant)


def unusable(variant: str, backend: BackendInstallState, facts: BackendFacts) -> Refusal | None:
    """Why a variant cannot be installed on this machine, as far as that is known before trying."""
    if variant in ("", USUAL):
        return None
    names = [one.name for one in facts.variants]
    if variant not in (*names, *facts.versions):
        known = f"it has {', '.join(names)}" if names else "it has none"
        return refuse(
            "no_such_variant",
            f'{facts.name} has no variant "{variant}" here; {known}.',
            kind="not_found",
            subject=facts.name,
        )
    rank = next((one for one in backend.ranked if one.name == variant), None)
    if rank is None or rank.usable:
        return None
    return refuse(
        "variant_unusable",
        f"{facts.name} {variant} cannot run on this machine: {rank.reason}",
        advice="greenroom backends shows which variants can.",
        kind="not_ready",
        subject=facts.name,
    )
