"""Installing backends, removing them, and which version is in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from greenroom.actors.installer.messages import BackendState, Uninstalled, Verified
from greenroom.actors.kernel.errors import ErrorKind
from greenroom.actors.scheduler.state import Quarantine
from greenroom.actors.values import Failure, Installation, Mode, ModelFormat, Part, Plan
from greenroom.actors.variants import RankedVariant
from greenroom.runner.http.backends import (
    IGNORED_BACKENDS,
    CancelInstallBody,
    InstallBody,
    NamedBody,
    UninstallBody,
    WantedBody,
)
from greenroom.runner.http.openapi.operation import (
    COMMAND,
    FORCE,
    JOB,
    NDJSON,
    WITH_BODY,
    Operation,
    Parameter,
    Returns,
)
from greenroom.runner.http.port import EVENT_STREAM

_UNSET = msgspec.UNSET


class InstalledRow(Installation, frozen=True, kw_only=True):
    current: bool
    """New engines start from it."""
    retiring: bool
    engines: int
    no_restore: str | None
    """Why its engines cannot go on with saved conversations; empty if they can, null if it is not known."""


class VariantRow(RankedVariant, frozen=True, kw_only=True):
    title: str
    hashes: Literal["shipped", "resolved at installation"]
    installed: bool
    failure: Failure | None
    install: str
    """The command that installs it."""


class InstallStep(msgspec.Struct, kw_only=True):
    """How far an installation is."""

    message: str | msgspec.UnsetType = _UNSET
    rate: float | msgspec.UnsetType = _UNSET
    percent: int | msgspec.UnsetType = _UNSET
    follows: str | msgspec.UnsetType = _UNSET
    place: int | msgspec.UnsetType = _UNSET
    parts: list[Part] | msgspec.UnsetType = _UNSET


class InstallJobRow(InstallStep, kw_only=True):
    id: str
    attempt: int
    retry_at: float
    queue: list[str]
    job: str | msgspec.UnsetType = _UNSET
    phase: str | msgspec.UnsetType = _UNSET
    done: int | msgspec.UnsetType = _UNSET
    total: int | msgspec.UnsetType = _UNSET


class BackendRow(msgspec.Struct, kw_only=True):
    name: str
    title: str
    state: BackendState
    version: str
    pinned_version: str
    installations: list[InstalledRow]
    size: int
    verdict: str
    """Why this machine cannot run it; empty if it can."""
    deferred: bool
    variant: str
    variants: list[VariantRow]
    offered: str
    formats: list[ModelFormat]
    modes: list[Mode]
    job: InstallJobRow | None
    quarantines: list[Quarantine]
    failure: Failure | None
    install: str
    """The command that installs it."""


class EndedAnswer(msgspec.Struct):
    ended: bool
    """Whether there was a job to cancel."""


class ActivatedAnswer(msgspec.Struct):
    installation: Installation


class InstallProgress(InstallStep, kw_only=True, tag="progress"):
    done: int
    total: int
    job: str
    phase: str
    seconds_left: float | msgspec.UnsetType = _UNSET


class InstallSuccess(msgspec.Struct, kw_only=True, tag="success"):
    message: str
    already: bool
    installation: Installation


class InstallError(msgspec.Struct, kw_only=True, tag="error"):
    message: str
    advice: str
    code: str
    kind: ErrorKind


InstallLine = InstallProgress | InstallSuccess | InstallError
_FOLLOW = ("Location",)

OPERATIONS: Mapping[str, Operation] = {
    "GET /engines": Operation(
        summary="List the backends",
        answers={200: Returns("The backends.", list[BackendRow], headers=(IGNORED_BACKENDS,))},
    ),
    "GET /engines/{name}": Operation(
        summary="Get a backend",
        path={"name": "The backend's name."},
        answers={200: Returns("The backend.", BackendRow)},
        errors=frozenset({404}),
    ),
    "POST /engines": Operation(
        summary="Start installing a backend",
        body=WantedBody,
        answers={
            200: Returns("The backend is installed.", BackendRow, headers=_FOLLOW),
            202: Returns(
                "The installation has started; `Location` shows its progress.", BackendRow, headers=_FOLLOW
            ),
        },
        errors=WITH_BODY | JOB,
    ),
    "DELETE /engines/{name}": Operation(
        summary="Remove a backend, or a version of it",
        path={"name": "The backend's name."},
        query={
            "force": FORCE,
            "version": Parameter("Only this version."),
            "variant": Parameter("Only this variant."),
        },
        answers={
            200: Returns("The backend was removed.", Uninstalled),
            202: Returns(
                "It will be removed once its engines have finished their requests.",
                BackendRow,
                headers=_FOLLOW,
            ),
        },
        errors=COMMAND,
    ),
    "POST /engines/install-backend": Operation(
        summary="Install a backend and wait",
        detail=(
            "Unless progress is streamed, the answer is empty. If the client disconnects, the installation "
            "continues."
        ),
        body=InstallBody,
        answers={
            200: Returns(
                "The backend is installed. With `dry_run`: the plan.",
                Plan | None,
                streams={NDJSON: InstallLine, EVENT_STREAM: InstallLine},
            )
        },
        errors=WITH_BODY | JOB,
    ),
    "POST /engines/uninstall-backend": Operation(
        summary="Remove a backend and wait",
        body=UninstallBody,
        answers={
            200: Returns(
                "The backend was removed. The body is empty unless the client accepts JSON.", Uninstalled
            )
        },
        errors=WITH_BODY | COMMAND,
    ),
    "POST /engines/cancel-install": Operation(
        summary="Cancel an installation",
        body=CancelInstallBody,
        answers={200: Returns("Whether there was an installation to cancel.", EndedAnswer)},
        errors=WITH_BODY | COMMAND,
    ),
    "POST /engines/activate-backend": Operation(
        summary="Switch to another installed version",
        body=NamedBody,
        answers={200: Returns("The version in use now.", ActivatedAnswer)},
        errors=WITH_BODY | COMMAND,
    ),
    "POST /engines/verify-backend": Operation(
        summary="Verify the files of one backend or all",
        body=NamedBody,
        needs_body=False,
        answers={200: Returns("The result for each installation.", list[Verified])},
        errors=WITH_BODY | COMMAND,
    ),
}
