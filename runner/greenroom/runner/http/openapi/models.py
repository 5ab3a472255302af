"""The models in the store: list, pull, push, change and remove them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from greenroom.actors.kernel.errors import ErrorKind
from greenroom.actors.values import Mode
from greenroom.runner.http.effective import EffectiveRow
from greenroom.runner.http.models import FREED, KEPT, PruneBody, RepackageBody
from greenroom.runner.http.openapi.backends import EndedAnswer
from greenroom.runner.http.openapi.operation import (
    COMMAND,
    FORCE,
    JOB,
    PLAIN,
    TAR,
    WITH_BODY,
    Operation,
    Parameter,
    Returns,
)
from greenroom.runner.http.port import JSON
from greenroom.runner.http.transfers import AdoptBody, CancelPullBody, CreateBody, PushBody

_UNSET = msgspec.UNSET


class ModelConfigRow(msgspec.Struct, kw_only=True):
    """What is not known is left out."""

    format: str | msgspec.UnsetType = _UNSET
    quantization: str | msgspec.UnsetType = _UNSET
    parameters: str | msgspec.UnsetType = _UNSET
    architecture: str | msgspec.UnsetType = _UNSET
    size: str | msgspec.UnsetType = _UNSET
    """For people, in powers of 1024."""
    context_size: int | msgspec.UnsetType = _UNSET
    gguf: dict[str, Any] | msgspec.UnsetType = _UNSET
    safetensors: dict[str, Any] | msgspec.UnsetType = _UNSET
    diffusers: dict[str, Any] | msgspec.UnsetType = _UNSET


class ModelRow(msgspec.Struct, kw_only=True):
    id: str
    tags: list[str] | msgspec.UnsetType = _UNSET
    created: int
    config: ModelConfigRow
    bytes: int


class ModelFileRow(msgspec.Struct):
    name: str
    size: int
    digest: str
    media_type: str


class TemplateRow(msgspec.Struct):
    file: str
    names: list[str]


class ConversationsRow(msgspec.Struct):
    """Whether a model's conversations outlive its engine."""

    saved: bool
    reason: str
    """Why not, or what is uncertain; empty if nothing is."""


class ProspectRow(msgspec.Struct, kw_only=True):
    """The backend that would serve the model in one mode. Sizes are in bytes."""

    mode: Mode
    backend: str | None
    installed: bool
    reasons: list[str]
    memory: int | msgspec.UnsetType = _UNSET
    memory_budget: int | msgspec.UnsetType = _UNSET
    fits: bool | msgspec.UnsetType = _UNSET
    context_size: int | msgspec.UnsetType = _UNSET
    layers: int | msgspec.UnsetType = _UNSET
    placement: str | msgspec.UnsetType = _UNSET
    placement_reason: str | msgspec.UnsetType = _UNSET
    context: int | msgspec.UnsetType = _UNSET
    context_for_all: int | msgspec.UnsetType = _UNSET
    speed: float | msgspec.UnsetType = _UNSET
    """Generated tokens per second."""
    speed_is: Literal["measured", "estimated"] | msgspec.UnsetType = _UNSET
    conversations: ConversationsRow | msgspec.UnsetType = _UNSET


class StoredMessageRow(msgspec.Struct):
    role: str
    content: str


class DefaultsRow(msgspec.Struct, kw_only=True):
    system: str | msgspec.UnsetType = _UNSET
    messages: list[StoredMessageRow] | msgspec.UnsetType = _UNSET
    parameters: dict[str, Any] | msgspec.UnsetType = _UNSET


class ModelAnswer(ModelRow, kw_only=True):
    source: str
    reads: list[str] | msgspec.UnsetType = _UNSET
    """The kinds of input that it reads: `text`, `image`, `audio`."""
    files: list[ModelFileRow] | msgspec.UnsetType = _UNSET
    chat_template: TemplateRow | msgspec.UnsetType | None = _UNSET
    serving: list[ProspectRow] | msgspec.UnsetType = _UNSET
    defaults: DefaultsRow | msgspec.UnsetType = _UNSET
    """What requests get that say nothing of their own, for a model that was created with it."""
    settings: list[EffectiveRow] | msgspec.UnsetType = _UNSET
    """How it is loaded, and where each value comes from."""
    quantizations: dict[str, int] | msgspec.UnsetType = _UNSET
    """For a model that is not stored: the quantizations at its source, with their sizes in bytes."""


class LayerRow(msgspec.Struct, kw_only=True):
    size: int
    current: int
    id: str | msgspec.UnsetType = _UNSET
    name: str | msgspec.UnsetType = _UNSET


class TransferLine(msgspec.Struct, kw_only=True):
    """One progress line of a pull, push or verification. Sizes are in bytes."""

    type: Literal["progress", "success", "error"]
    message: str
    total: int
    layer: LayerRow
    mode: Literal["pull", "push", "verify"]
    phase: str | msgspec.UnsetType = _UNSET
    rate: float | msgspec.UnsetType = _UNSET
    done: int | msgspec.UnsetType = _UNSET
    of: int | msgspec.UnsetType = _UNSET
    code: str | msgspec.UnsetType = _UNSET
    """The code of an error."""
    kind: ErrorKind | msgspec.UnsetType = _UNSET
    """Its kind, such as `exhausted` where there is no room."""


class TaggedAnswer(msgspec.Struct):
    message: str
    target: str


class RepackagedAnswer(TaggedAnswer):
    source: str


class RemovedRow(msgspec.Struct, rename="pascal"):
    untagged: str | msgspec.UnsetType = _UNSET
    deleted: str | msgspec.UnsetType = _UNSET


class DiskUsageAnswer(msgspec.Struct):
    """Disk space in bytes. Each file counts once."""

    models_disk_usage: int
    default_backend_disk_usage: int
    backends_disk_usage: dict[str, int]
    models_shared_disk_usage: int
    unfinished_disk_usage: int
    cache_disk_usage: int
    conversations_disk_usage: int
    engines_disk_usage: int
    journal_disk_usage: int
    other_disk_usage: int
    total_disk_usage: int


class PrunedAnswer(msgspec.Struct):
    deleted: list[str]
    freed: int
    kept_for: list[str]
    """Backends whose installation is in progress: their downloads were kept."""


_LINES = {PLAIN: TransferLine, JSON: TransferLine}
_LINES_DETAIL = (
    "Streams one JSON object per line: by default as HTML-escaped `text/plain`, like Docker Model Runner, or "
    "unescaped with `Accept: application/json`. Ignore empty lines. If the job fails after the stream has "
    "begun, the last line holds the error."
)

OPERATIONS: Mapping[str, Operation] = {
    "GET /models": Operation(
        summary="List the models in the store", answers={200: Returns("The models.", list[ModelRow])}
    ),
    "GET /models/{reference}": Operation(
        summary="Get a model",
        query={"remote": Parameter("Ask the source of the model instead of the store.", bool)},
        answers={200: Returns("The model.", ModelAnswer)},
        errors=JOB,
    ),
    "POST /models/create": Operation(
        summary="Pull a model",
        detail=_LINES_DETAIL,
        body=CreateBody,
        answers={200: Returns("Progress, then the result.", streams=_LINES)},
        errors=WITH_BODY | JOB,
    ),
    "POST /models/adopt": Operation(
        summary="Adopt a model that another program keeps on this machine",
        detail="Its files are shared with the store, or copied if `copy` allows that; never moved or "
        f"changed. {_LINES_DETAIL}",
        body=AdoptBody,
        answers={200: Returns("Progress, then the result.", streams=_LINES)},
        errors=WITH_BODY | JOB,
    ),
    "POST /models/cancel": Operation(
        summary="Cancel a pull",
        body=CancelPullBody,
        answers={200: Returns("Whether there was a pull to cancel.", EndedAnswer)},
        errors=WITH_BODY | COMMAND,
    ),
    "POST /models/load": Operation(
        summary="Import a model from an archive",
        body=bytes,
        content=TAR,
        answers={200: Returns("The model was imported.", TransferLine, headers=("X-Model-Id",))},
        errors=WITH_BODY | JOB,
    ),
    "GET /models/{reference}/export": Operation(
        summary="Export a model as an archive",
        answers={200: Returns("The archive.", bytes, content=TAR, headers=("Content-Disposition",))},
        errors=JOB,
    ),
    "POST /models/{reference}/push": Operation(
        summary="Push a model to its registry",
        detail=_LINES_DETAIL,
        body=PushBody,
        needs_body=False,
        answers={200: Returns("Progress, then the result.", streams=_LINES)},
        errors=WITH_BODY | JOB,
    ),
    "POST /models/{reference}/verify": Operation(
        summary="Verify the files of a model",
        detail=_LINES_DETAIL,
        answers={200: Returns("Progress, then the result.", streams=_LINES)},
        errors=JOB,
    ),
    "POST /models/{reference}/tag": Operation(
        summary="Give a model another name",
        query={
            "repo": Parameter("The new name, without its tag."),
            "tag": Parameter("The tag, such as `latest`."),
        },
        answers={201: Returns("The model has the name.", TaggedAnswer)},
        errors=COMMAND,
    ),
    "POST /models/{reference}/repackage": Operation(
        summary="Copy a model with another configuration",
        body=RepackageBody,
        answers={201: Returns("The new model is stored.", RepackagedAnswer)},
        errors=WITH_BODY | JOB,
    ),
    "POST /models/{reference}/{action}": Operation(
        summary="Refused: unknown action", path={"action": "An unknown action."}, answers={}, errors=COMMAND
    ),
    "DELETE /models/{reference}": Operation(
        summary="Remove a model's name; with its last name, the model",
        query={"force": FORCE},
        answers={200: Returns("What was removed.", list[RemovedRow], headers=(FREED, KEPT))},
        errors=COMMAND,
    ),
    "DELETE /models/purge": Operation(
        summary="Remove all models that are not in use",
        query={"force": FORCE},
        answers={200: Returns("The models were removed.")},
        errors=COMMAND,
    ),
    "POST /models/prune": Operation(
        summary="Remove interrupted downloads and unused files",
        body=PruneBody,
        needs_body=False,
        answers={200: Returns("What was removed.", PrunedAnswer)},
        errors=WITH_BODY | COMMAND,
    ),
    "GET /engines/df": Operation(
        summary="Get disk usage", answers={200: Returns("Bytes by purpose.", DiskUsageAnswer)}
    ),
}
