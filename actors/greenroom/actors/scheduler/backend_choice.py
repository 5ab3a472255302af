"""Which backend serves a model, and which installation of it: pure functions of formats, platform, what is
installed or may be, and what is in quarantine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from greenroom.actors.installer.messages import BackendStatus
from greenroom.actors.kernel.core import refuse
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.scheduler.state import SchedulerState, breaker_key
from greenroom.actors.values import BackendFacts, EngineSpec, Installation, InstallPolicy, Mode, Model

Statuses = Mapping[str, BackendStatus]


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """This installation serves it now."""

    backend: str
    installation_id: str
    reasons: tuple[str, ...]
    preferred: str = ""
    """A backend that is preferred to this one and not installed."""


class NotInstalled(Refusal, frozen=True, kw_only=True):
    """A model cannot be loaded until one of these backends is installed, the preferred one first."""

    backends: tuple[str, ...]


class Install(msgspec.Struct, frozen=True, kw_only=True):
    """This backend serves it once it is installed."""

    backend: str
    reason: str


def choose(
    model: Model,
    mode: Mode,
    binding: str,
    policy: InstallPolicy,
    facts: Sequence[BackendFacts],
    statuses: Statuses,
) -> Use | Install | Refusal:
    """Decide on the backend of a load.

    1. A path that names a backend is binding: no other is looked at.
    2. Only backends that read the format in that mode count; none: refused, with what would.
    3. Only those this platform can run count; none: refused, with each verdict.
    4. Of the installed ones the most preferred serves; absent better ones are named as advice.
    5. One that is being installed already is waited for.
    6. No backend is installed beside one that the user has configured; if that leaves none, refused with what
       is wrong with the configured one.
    7. One that is not deferred and that the user has not uninstalled is installed without asking, unless
       the policy is `never`.
    8. A deferred one is installed under `auto`; under `ask` and `never` the request is refused with the
       command that installs it.
    """
    named = [one for one in facts if one.name == binding] if binding else list(facts)  # 1
    if not named:
        known = ", ".join(one.name for one in facts)
        return refuse(
            "backend_not_found",
            f'There is no backend "{binding}".',
            advice=f"Known backends: {known}.",
            kind="not_found",
            subject=binding,
        )
    fitting = [one for one in named if model.format in one.formats and mode in one.modes]  # 2
    if not fitting:
        return _unfit(model, mode, binding, facts)
    runnable = [one for one in fitting if not one.verdict]  # 3
    if not runnable:
        return refuse(
            "unsupported_platform",
            " ".join(one.verdict for one in fitting),
            kind="not_ready",
            subject=fitting[0].name,
        )
    installed = [one for one in runnable if _current(statuses, one) is not None]  # 4
    if installed:
        best = min(installed, key=lambda one: one.preference)
        current = _current(statuses, best)
        assert current is not None
        return Use(
            backend=best.name,
            installation_id=current.id,
            reasons=_reasons(best, fitting, installed, model, binding)
            + _passed_over(statuses, best, current),
            preferred="" if binding else _preferred_absent(best, runnable),
        )
    offered = sorted(runnable, key=lambda one: one.install_preference)
    for one in offered:  # 5
        if one.name in statuses and statuses[one.name].job:
            return Install(backend=one.name, reason="it is already being installed")
    ours = [one for one in offered if _theirs(statuses, one) is None]  # 6
    if not ours:
        return _theirs_is_broken(offered[0], statuses)
    for one in ours:  # 7
        wanted = one.name not in statuses or statuses[one.name].wanted
        if not one.deferred and wanted and policy != "never":
            return Install(backend=one.name, reason="it is a default backend")
    best = ours[0]
    if policy == "auto":  # 8
        return Install(backend=best.name, reason="the install policy is auto")
    return not_installed(best, statuses.get(best.name), ours[1:])


def not_installed(
    backend: BackendFacts, status: BackendStatus | None, others: Sequence[BackendFacts] = ()
) -> NotInstalled:
    """Says how to install the backend, and which others could be installed instead."""
    broken = (
        status.failure.message if status is not None and status.state == "broken" and status.failure else ""
    )
    advice = [f"(The existing installation is broken: {broken})"] if broken else []
    advice += [f"(or, with {one.name}: greenroom install-runner --backend {one.name})" for one in others]
    return NotInstalled(
        code="backend_not_installed",
        message=(
            f'backend "{backend.name}" is not installed; '
            f"run: greenroom install-runner --backend {backend.name}"
        ),
        advice=" ".join(advice),
        kind="not_ready",
        subject=backend.name,
        backends=(backend.name, *(one.name for one in others)),
        numbers={"download_bytes": float(backend.download_bytes)} if backend.download_bytes else {},
    )


def _current(statuses: Statuses, backend: BackendFacts) -> Installation | None:
    status = statuses.get(backend.name)
    return status.current if status is not None else None


def _theirs(statuses: Statuses, backend: BackendFacts) -> Installation | None:
    status = statuses.get(backend.name)
    return next((one for one in status.installations if not one.managed), None) if status else None


def _theirs_is_broken(backend: BackendFacts, statuses: Statuses) -> Refusal:
    theirs = _theirs(statuses, backend)
    why = (theirs.broken if theirs is not None else "") or "it is not in use"
    return refuse(
        "backend_broken",
        f"The {backend.name} configured in config.toml cannot be used: {why}.",
        advice="Repair it and run greenroom backends verify, or remove "
        f'[backends."{backend.name}"] from config.toml and run greenroom restart.',
        kind="not_ready",
        subject=backend.name,
    )


def _passed_over(statuses: Statuses, backend: BackendFacts, current: Installation) -> tuple[str, ...]:
    theirs = _theirs(statuses, backend)
    if theirs is None or theirs.id == current.id:
        return ()
    why = theirs.broken or "it is not in use"
    return (f"the {backend.name} configured in config.toml cannot be used: {why}",)


def _reasons(
    best: BackendFacts,
    fitting: Sequence[BackendFacts],
    installed: Sequence[BackendFacts],
    model: Model,
    binding: str,
) -> tuple[str, ...]:
    if binding:
        return (f"the request names {binding}",)
    reasons = [f"it reads {'GGUF' if model.format == 'gguf' else model.format} and is installed"]
    for one in fitting:
        if one.name == best.name:
            continue
        if one.verdict:
            reasons.append(one.verdict.rstrip("."))
        elif one in installed:
            reasons.append(f"it is preferred to {one.name}")
        elif one.preference < best.preference:
            command = f"greenroom install-runner --backend {one.name}"
            reasons.append(f"{one.name} is preferred but not installed (run: {command})")
    return tuple(reasons)


def _preferred_absent(best: BackendFacts, runnable: Sequence[BackendFacts]) -> str:
    """The most preferred of those that could run here and are not installed, if it comes before `best`."""
    better = [one for one in runnable if one.preference < best.preference]
    return min(better, key=lambda one: one.preference).name if better else ""


def _unfit(model: Model, mode: Mode, binding: str, facts: Sequence[BackendFacts]) -> Refusal:
    able = [one for one in facts if model.format in one.formats and mode in one.modes]
    who = ", ".join(one.name for one in able) or "no backend"
    if binding:
        message = f"{binding} cannot serve {model.format} models in {mode} mode; {who} can."
    else:
        message = f"No backend serves {model.format} models in {mode} mode."
    others = sorted({one for each in facts if mode in each.modes for one in each.formats})
    advice = f"Use one in another format: {', '.join(others)}." if others and not able else ""
    return refuse("unsupported_model", message, advice=advice, kind="invalid", subject=binding)


# which installation


def diverted(choice: Use, model_id: str, state: SchedulerState, statuses: Statuses) -> Use:
    """The same backend, from the installation that serves this model."""
    seen = {choice.installation_id}
    while (further := _diverted_once(choice, model_id, state, statuses)).installation_id not in seen:
        choice = further
        seen.add(choice.installation_id)
    return choice


def _diverted_once(choice: Use, model_id: str, state: SchedulerState, statuses: Statuses) -> Use:
    one = state.quarantines.get(breaker_key(model_id, choice.backend, choice.installation_id))
    if one is None or whole(statuses, choice.backend).get(one.back_to) is None:
        return choice
    reason = (
        f"{choice.backend} {one.back_to_version} serves it, since it failed "
        f"{in_a_row(one.failures)} on {one.version}"
    )
    return msgspec.structs.replace(choice, installation_id=one.back_to, reasons=(*choice.reasons, reason))


def in_a_row(failures: int) -> str:
    """For people: `once`, `3 times in a row`."""
    return "once" if failures == 1 else f"{failures} times in a row"


def is_superseded(spec: EngineSpec, state: SchedulerState, statuses: Statuses) -> bool:
    """Whether another variant of its backend is in use now, and would serve this model."""
    status = statuses.get(spec.backend)
    if status is None or status.current is None:
        return False
    here = whole(statuses, spec.backend).get(spec.installation_id)
    if here is None or here.variant == status.current.variant:
        return False
    use = Use(backend=spec.backend, installation_id=status.current.id, reasons=())
    return diverted(use, spec.model_id, state, statuses).installation_id != here.id


def whole(statuses: Statuses, backend: str) -> dict[str, Installation]:
    """Installations that engines could start from."""
    status = statuses.get(backend)
    if status is None:
        return {}
    return {one.id: one for one in status.installations if not one.broken and one.id not in status.retiring}
