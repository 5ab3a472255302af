"""Ollama's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from greenroom.runner.http.ollama.create import OllamaCreateBody
from greenroom.runner.http.ollama.fields import EMBED, EMBEDDINGS, GENERATE, OLLAMA_CHAT
from greenroom.runner.http.ollama.models import CopyBody, DeleteBody, ShowBody
from greenroom.runner.http.ollama.transfers import OllamaPushBody, PullBody
from greenroom.runner.http.openapi.operation import (
    COMMAND,
    JOB,
    NDJSON,
    SERVED,
    WITH_BODY,
    Fields,
    Operation,
    Returns,
)

_UNSET = msgspec.UNSET


class OllamaFunction(msgspec.Struct):
    index: int
    name: str
    arguments: dict[str, Any]


class OllamaCall(msgspec.Struct):
    function: OllamaFunction


class OllamaMessage(msgspec.Struct):
    role: str
    content: str
    thinking: str | msgspec.UnsetType = _UNSET
    tool_calls: list[OllamaCall] | msgspec.UnsetType = _UNSET


class OllamaAnswer(msgspec.Struct, kw_only=True):
    """Durations are in nanoseconds. Only the last line has counts and durations."""

    model: str
    created_at: str
    done: bool
    done_reason: str | msgspec.UnsetType = _UNSET
    total_duration: int | msgspec.UnsetType = _UNSET
    load_duration: int | msgspec.UnsetType = _UNSET
    prompt_eval_count: int | msgspec.UnsetType = _UNSET
    prompt_eval_duration: int | msgspec.UnsetType = _UNSET
    eval_count: int | msgspec.UnsetType = _UNSET
    eval_duration: int | msgspec.UnsetType = _UNSET
    logprobs: list[Any] | msgspec.UnsetType = _UNSET


class OllamaChatAnswer(OllamaAnswer, kw_only=True):
    message: OllamaMessage


class OllamaGenerateAnswer(OllamaAnswer, kw_only=True):
    response: str
    thinking: str | msgspec.UnsetType = _UNSET


class OllamaEmbedAnswer(msgspec.Struct, kw_only=True):
    """Without input, a request only loads the model, and the answer has no vectors."""

    model: str
    embeddings: list[list[float]]
    total_duration: int | msgspec.UnsetType = _UNSET
    load_duration: int | msgspec.UnsetType = _UNSET
    prompt_eval_count: int | msgspec.UnsetType = _UNSET
    created_at: str | msgspec.UnsetType = _UNSET
    done: bool | msgspec.UnsetType = _UNSET
    done_reason: str | msgspec.UnsetType = _UNSET


class OllamaEmbeddingAnswer(msgspec.Struct, kw_only=True):
    embedding: list[float]
    model: str | msgspec.UnsetType = _UNSET
    created_at: str | msgspec.UnsetType = _UNSET
    done: bool | msgspec.UnsetType = _UNSET
    done_reason: str | msgspec.UnsetType = _UNSET
    total_duration: int | msgspec.UnsetType = _UNSET


class OllamaDetails(msgspec.Struct, kw_only=True):
    parent_model: str | msgspec.UnsetType = _UNSET
    format: str | msgspec.UnsetType = _UNSET
    family: str | msgspec.UnsetType = _UNSET
    families: list[str] | msgspec.UnsetType | None = _UNSET
    parameter_size: str | msgspec.UnsetType = _UNSET
    quantization_level: str | msgspec.UnsetType = _UNSET


class OllamaTag(msgspec.Struct, kw_only=True):
    name: str
    model: str
    remote_model: str | msgspec.UnsetType = msgspec.UNSET
    """Its name at the remote backend that has it, if any."""
    remote_host: str | msgspec.UnsetType = msgspec.UNSET
    """The URL of that backend."""
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails
    capabilities: list[str]


class OllamaTagsAnswer(msgspec.Struct):
    models: list[OllamaTag]


class OllamaLoaded(msgspec.Struct):
    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int
    context_length: int


class OllamaLoadedAnswer(msgspec.Struct):
    models: list[OllamaLoaded]


class OllamaStoredMessage(msgspec.Struct):
    role: str
    content: str


class OllamaShowAnswer(msgspec.Struct, kw_only=True):
    modelfile: str
    parameters: str
    template: str
    system: str | msgspec.UnsetType = _UNSET
    license: str | msgspec.UnsetType = _UNSET
    messages: list[OllamaStoredMessage] | msgspec.UnsetType = _UNSET
    projector_info: dict[str, Any] | msgspec.UnsetType = _UNSET
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    remote_model: str | msgspec.UnsetType = _UNSET
    remote_host: str | msgspec.UnsetType = _UNSET


class OllamaVersionAnswer(msgspec.Struct):
    version: str
    greenroom: str


class OllamaStatusLine(msgspec.Struct):
    """One line of progress. Sizes are in bytes."""

    status: str
    digest: str | msgspec.UnsetType = _UNSET
    total: int | msgspec.UnsetType = _UNSET
    completed: int | msgspec.UnsetType = _UNSET


class OllamaErrorLine(msgspec.Struct):
    error: str


def _generated(kind: type[OllamaAnswer]) -> dict[int, Returns]:
    return {
        200: Returns(
            "The answer, as a stream of lines unless `stream` is false.",
            kind,
            streams={NDJSON: (kind, OllamaErrorLine)},
        )
    }


_STATUS = {
    200: Returns(
        "Progress and result, as a stream of lines unless `stream` is false.",
        OllamaStatusLine,
        streams={NDJSON: (OllamaStatusLine, OllamaErrorLine)},
    )
}
_ASKED = WITH_BODY | SERVED

OPERATIONS: Mapping[str, Operation] = {
    "POST /api/chat": Operation(
        summary="Generate the next message of a chat",
        body=Fields("OllamaChatRequest", OLLAMA_CHAT),
        answers=_generated(OllamaChatAnswer),
        errors=_ASKED,
    ),
    "POST /api/generate": Operation(
        summary="Generate an answer to a prompt",
        body=Fields("OllamaGenerateRequest", GENERATE),
        answers=_generated(OllamaGenerateAnswer),
        errors=_ASKED,
    ),
    "POST /api/embed": Operation(
        summary="Create embeddings",
        body=Fields("OllamaEmbedRequest", EMBED),
        answers={200: Returns("Vectors.", OllamaEmbedAnswer)},
        errors=_ASKED,
    ),
    "POST /api/embeddings": Operation(
        summary="Create one embedding (Ollama's older format)",
        body=Fields("OllamaEmbeddingRequest", EMBEDDINGS),
        answers={200: Returns("A vector.", OllamaEmbeddingAnswer)},
        errors=_ASKED,
    ),
    "GET /api/version": Operation(
        summary="Get the version of Ollama's API, and Greenroom's",
        answers={200: Returns("Both versions.", OllamaVersionAnswer)},
    ),
    "GET /api/tags": Operation(
        summary="List the names of all models", answers={200: Returns("The names.", OllamaTagsAnswer)}
    ),
    "GET /api/ps": Operation(
        summary="List the loaded models and when they expire",
        answers={200: Returns("The loaded models.", OllamaLoadedAnswer)},
    ),
    "POST /api/show": Operation(
        summary="Get a model",
        body=ShowBody,
        answers={200: Returns("Its header, chat template, defaults and capabilities.", OllamaShowAnswer)},
        errors=WITH_BODY | JOB,
    ),
    "POST /api/copy": Operation(
        summary="Give a model another name",
        body=CopyBody,
        answers={200: Returns("The model has the name.")},
        errors=WITH_BODY | COMMAND,
    ),
    "DELETE /api/delete": Operation(
        summary="Remove a model's name; with its last name, the model",
        body=DeleteBody,
        answers={200: Returns("The name was removed.")},
        errors=WITH_BODY | COMMAND,
    ),
    "POST /api/create": Operation(
        summary="Create a model from another one, or from uploaded files, with defaults for requests",
        body=OllamaCreateBody,
        answers=_STATUS,
        errors=WITH_BODY | JOB,
    ),
    "POST /api/pull": Operation(
        summary="Pull a model", body=PullBody, answers=_STATUS, errors=WITH_BODY | JOB
    ),
    "POST /api/push": Operation(
        summary="Push a model to its registry", body=OllamaPushBody, answers=_STATUS, errors=WITH_BODY | JOB
    ),
    "HEAD /api/blobs/{digest}": Operation(
        summary="Check whether the store has a blob",
        answers={200: Returns("The store has it.")},
        errors=frozenset({404}),
    ),
    "POST /api/blobs/{digest}": Operation(
        summary="Upload a file for a model that is to be created",
        body=bytes,
        content="application/octet-stream",
        answers={200: Returns("The store had it already."), 201: Returns("It is kept.")},
        errors=WITH_BODY | {507},
    ),
}
