"""Ollama's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from greenroom.runner.http.ollama.fields import EMBED, EMBEDDINGS, GENERATE, OLLAMA_CHAT
from greenroom.runner.http.ollama.models import CopyBody, DeleteBody, OllamaCreateBody, ShowBody
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
    """Durations are in nanoseconds. The figures come with the last line."""

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
    """After a request without input only what was loaded."""

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


class OllamaTag(msgspec.Struct):
    name: str
    model: str
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


class OllamaShowAnswer(msgspec.Struct):
    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersionAnswer(msgspec.Struct):
    version: str
    greenroom: str


class OllamaStatusLine(msgspec.Struct):
    """Of a transfer, in bytes."""

    status: str
    digest: str | msgspec.UnsetType = _UNSET
    total: int | msgspec.UnsetType = _UNSET
    completed: int | msgspec.UnsetType = _UNSET


class OllamaErrorLine(msgspec.Struct):
    error: str


def _generated(kind: type[OllamaAnswer]) -> dict[int, Returns]:
    return {
        200: Returns(
            "The answer: a stream of lines unless `stream` is false.",
            kind,
            streams={NDJSON: (kind, OllamaErrorLine)},
        )
    }


_STATUS = {
    200: Returns(
        "What was done: a stream of lines unless `stream` is false.",
        OllamaStatusLine,
        streams={NDJSON: (OllamaStatusLine, OllamaErrorLine)},
    )
}
_ASKED = WITH_BODY | SERVED

OPERATIONS: Mapping[str, Operation] = {
    "POST /api/chat": Operation(
        summary="A chat",
        body=Fields("OllamaChatRequest", OLLAMA_CHAT),
        answers=_generated(OllamaChatAnswer),
        errors=_ASKED,
    ),
    "POST /api/generate": Operation(
        summary="An answer to one prompt",
        body=Fields("OllamaGenerateRequest", GENERATE),
        answers=_generated(OllamaGenerateAnswer),
        errors=_ASKED,
    ),
    "POST /api/embed": Operation(
        summary="Embeddings",
        body=Fields("OllamaEmbedRequest", EMBED),
        answers={200: Returns("Vectors.", OllamaEmbedAnswer)},
        errors=_ASKED,
    ),
    "POST /api/embeddings": Operation(
        summary="One embedding, in the older form",
        body=Fields("OllamaEmbeddingRequest", EMBEDDINGS),
        answers={200: Returns("A vector.", OllamaEmbeddingAnswer)},
        errors=_ASKED,
    ),
    "GET /api/version": Operation(
        summary="The version of Ollama whose API this is",
        answers={200: Returns("Both versions.", OllamaVersionAnswer)},
    ),
    "GET /api/tags": Operation(
        summary="Every name that a model can be asked for by",
        answers={200: Returns("The names.", OllamaTagsAnswer)},
    ),
    "GET /api/ps": Operation(
        summary="What is loaded, and until when",
        answers={200: Returns("What is loaded.", OllamaLoadedAnswer)},
    ),
    "POST /api/show": Operation(
        summary="One model",
        body=ShowBody,
        answers={200: Returns("Its header, chat template and capabilities.", OllamaShowAnswer)},
        errors=WITH_BODY | JOB,
    ),
    "POST /api/copy": Operation(
        summary="Give a model another name",
        body=CopyBody,
        answers={200: Returns("It has the name.")},
        errors=WITH_BODY | COMMAND,
    ),
    "DELETE /api/delete": Operation(
        summary="Remove a name, and with the last name the model",
        body=DeleteBody,
        answers={200: Returns("It is gone.")},
        errors=WITH_BODY | COMMAND,
    ),
    "POST /api/create": Operation(
        summary="The same model under another name, with another context",
        body=OllamaCreateBody,
        answers=_STATUS,
        errors=WITH_BODY | JOB,
    ),
    "POST /api/pull": Operation(
        summary="Pull a model", body=PullBody, answers=_STATUS, errors=WITH_BODY | JOB
    ),
    "POST /api/push": Operation(
        summary="Publish a model", body=OllamaPushBody, answers=_STATUS, errors=WITH_BODY | JOB
    ),
    "HEAD /api/blobs/{digest}": Operation(
        summary="Whether the store has these bytes",
        answers={200: Returns("It has.")},
        errors=frozenset({404}),
    ),
    "POST /api/blobs/{digest}": Operation(
        summary="Refused: models are not made of single files", answers={}, errors=frozenset({422})
    ),
}
