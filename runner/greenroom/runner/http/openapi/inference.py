"""What engines answer: OpenAI's API, its Responses, Anthropic's Messages, rerankings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from greenroom.runner.http.anthropic.fields import MESSAGES, TOKEN_COUNT
from greenroom.runner.http.completion_fields import COMPLETION, EMBEDDING
from greenroom.runner.http.errors import VERSION_HEADER
from greenroom.runner.http.fields import CHAT, Dialogue
from greenroom.runner.http.llama_server import DETOKENIZE, INFILL, TOKENIZE
from greenroom.runner.http.not_served import NOT_SERVED
from greenroom.runner.http.openapi.operation import (
    SERVED,
    WITH_BODY,
    Fields,
    Operation,
    Parameter,
    Returns,
    streamed,
)
from greenroom.runner.http.port import DEVICE_HEADER, EXPLAIN_HEADER
from greenroom.runner.http.ranking_fields import RANKED, RERANKING, SCORED
from greenroom.runner.http.responses.fields import RESPONSES

_UNSET = msgspec.UNSET


class TokenUsage(msgspec.Struct, kw_only=True):
    """Tokens."""

    prompt_tokens: int | msgspec.UnsetType = _UNSET
    completion_tokens: int | msgspec.UnsetType = _UNSET
    total_tokens: int | msgspec.UnsetType = _UNSET


class EngineAnswer(msgspec.Struct, kw_only=True):
    id: str | msgspec.UnsetType = _UNSET
    object: str | msgspec.UnsetType = _UNSET
    created: int | msgspec.UnsetType = _UNSET
    model: str | msgspec.UnsetType = _UNSET


class ChatMessage(msgspec.Struct, kw_only=True):
    role: str | msgspec.UnsetType = _UNSET
    content: str | msgspec.UnsetType | None = _UNSET
    reasoning_content: str | msgspec.UnsetType | None = _UNSET
    tool_calls: list[dict[str, Any]] | msgspec.UnsetType | None = _UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int | msgspec.UnsetType = _UNSET
    message: ChatMessage
    finish_reason: str | msgspec.UnsetType | None = _UNSET
    logprobs: dict[str, Any] | msgspec.UnsetType | None = _UNSET


class ChatAnswer(EngineAnswer, kw_only=True):
    """A `chat.completion`, with the engine's fields."""

    choices: list[ChatChoice]
    usage: TokenUsage | msgspec.UnsetType = _UNSET


class ChunkChoice(msgspec.Struct, kw_only=True):
    index: int | msgspec.UnsetType = _UNSET
    delta: ChatMessage
    finish_reason: str | msgspec.UnsetType | None = _UNSET


class ChatChunk(EngineAnswer, kw_only=True):
    """A `chat.completion.chunk`; `[DONE]` follows the last one."""

    choices: list[ChunkChoice]
    usage: TokenUsage | msgspec.UnsetType | None = _UNSET


class TextChoice(msgspec.Struct, kw_only=True):
    index: int | msgspec.UnsetType = _UNSET
    text: str
    finish_reason: str | msgspec.UnsetType | None = _UNSET


class TextAnswer(EngineAnswer, kw_only=True):
    """A `text_completion`, or one chunk of it in a stream."""

    choices: list[TextChoice]
    usage: TokenUsage | msgspec.UnsetType | None = _UNSET


class EmbeddingRow(msgspec.Struct, kw_only=True):
    object: str | msgspec.UnsetType = _UNSET
    index: int | msgspec.UnsetType = _UNSET
    embedding: list[float] | str
    """Numbers, or their bytes in base64."""


class EmbeddingsAnswer(msgspec.Struct, kw_only=True):
    object: str | msgspec.UnsetType = _UNSET
    model: str | msgspec.UnsetType = _UNSET
    data: list[EmbeddingRow]
    usage: TokenUsage | msgspec.UnsetType = _UNSET


class RankedDocument(msgspec.Struct, kw_only=True):
    index: int
    relevance_score: float
    document: dict[str, Any] | msgspec.UnsetType = _UNSET
    """Present if `return_documents` is true."""


class RankAnswer(msgspec.Struct):
    id: str
    object: Literal["list"]
    model: str
    results: list[RankedDocument]
    """The most relevant first."""
    usage: TokenUsage
    meta: dict[str, Any]
    """Read by Cohere's clients."""


class ScoreRow(msgspec.Struct, kw_only=True):
    index: int
    object: str | msgspec.UnsetType = _UNSET
    score: float


class ScoreAnswer(EngineAnswer, kw_only=True):
    data: list[ScoreRow]
    usage: TokenUsage | msgspec.UnsetType = _UNSET


class TokenPiece(msgspec.Struct):
    id: int
    piece: str | list[int]
    """The token's text, or its bytes if they are not valid UTF-8."""


class TokensAnswer(msgspec.Struct):
    tokens: list[int | TokenPiece]


class ContentAnswer(msgspec.Struct):
    content: str


class PromptAnswer(msgspec.Struct):
    prompt: str


class HealthAnswer(msgspec.Struct):
    status: str
    loaded: bool | msgspec.UnsetType = _UNSET


class ListedModel(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    dmr: dict[str, Any] | msgspec.UnsetType = _UNSET
    """Docker Model Runner's fields, as far as they are known."""


class ListedModels(msgspec.Struct):
    object: Literal["list"]
    data: list[ListedModel]


class AnthropicModel(msgspec.Struct, kw_only=True):
    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: str
    capabilities: None
    deprecated_at: None
    line: None
    retires_at: None
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModels(msgspec.Struct):
    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


class AnthropicUsage(msgspec.Struct):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageAnswer(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    """Blocks: `text`, `thinking`, `tool_use`."""
    stop_reason: str | None
    stop_sequence: str | None
    usage: AnthropicUsage


class MessageStart(msgspec.Struct, tag="message_start"):
    message: MessageAnswer


class BlockStart(msgspec.Struct, tag="content_block_start"):
    index: int
    content_block: dict[str, Any]


class BlockDelta(msgspec.Struct, tag="content_block_delta"):
    index: int
    delta: dict[str, Any]
    """`text_delta`, `thinking_delta` or `input_json_delta`."""


class BlockStop(msgspec.Struct, tag="content_block_stop"):
    index: int


class MessageEnding(msgspec.Struct):
    stop_reason: str | None
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag="message_delta"):
    delta: MessageEnding
    usage: AnthropicUsage


class MessageStop(msgspec.Struct, tag="message_stop"):
    pass


MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop
"""An `event: error` with Anthropic's error object ends a stream that failed."""


class MessageTokensAnswer(msgspec.Struct):
    input_tokens: int


class ResponseAnswer(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    completed_at: int | None
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[dict[str, Any]]
    """Items: `message`, `reasoning`, `function_call`."""
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: str
    usage: dict[str, Any] | None
    user: str | None
    metadata: dict[str, str]


class ResponseEvent(msgspec.Struct, kw_only=True):
    """One event. Its `type` determines its fields."""

    type: str
    """The kind of event, such as `response.output_text.delta`."""
    sequence_number: int
    response: ResponseAnswer | msgspec.UnsetType = _UNSET
    item: dict[str, Any] | msgspec.UnsetType = _UNSET
    item_id: str | msgspec.UnsetType = _UNSET
    output_index: int | msgspec.UnsetType = _UNSET
    content_index: int | msgspec.UnsetType = _UNSET
    summary_index: int | msgspec.UnsetType = _UNSET
    part: dict[str, Any] | msgspec.UnsetType = _UNSET
    delta: str | msgspec.UnsetType = _UNSET
    text: str | msgspec.UnsetType = _UNSET
    logprobs: list[Any] | msgspec.UnsetType = _UNSET
    name: str | msgspec.UnsetType = _UNSET
    """The name of the called function."""
    arguments: str | msgspec.UnsetType = _UNSET


class ResponseTokensAnswer(msgspec.Struct):
    object: Literal["response.input_tokens"]
    input_tokens: int


class ResponseDeleted(msgspec.Struct):
    id: str
    object: Literal["response.deleted"]
    deleted: bool


class ResponseItems(msgspec.Struct):
    object: Literal["list"]
    data: list[dict[str, Any]]
    has_more: bool
    first_id: str
    last_id: str


_HEADERS = {
    EXPLAIN_HEADER: Parameter(
        f"With `1`, the answer's `{DEVICE_HEADER}` says which devices compute the model."
    ),
    "X-Preload-Only": Parameter("With `true`, only load the model and return an empty answer."),
}


def _asked(summary: str, name: str, fields: Dialogue, schema: Any, event: Any = None) -> Operation:
    streams = None if event is None else streamed(event)
    told = "The answer, or a stream of events if `stream` is true." if streams else "The answer."
    return Operation(
        summary=summary,
        body=Fields(name, fields),
        headers=_HEADERS,
        answers={200: Returns(told, schema, streams=streams)},
        errors=WITH_BODY | SERVED,
    )


_ANTHROPIC = {
    VERSION_HEADER: Parameter("Anthropic's clients send it. The answer then has Anthropic's format.")
}
_KEPT = frozenset({404})

OPERATIONS: Mapping[str, Operation] = {
    "POST /v1/chat/completions": _asked(
        "Create a chat completion", "ChatRequest", CHAT, ChatAnswer, ChatChunk
    ),
    "POST /v1/completions": _asked(
        "Complete a text", "CompletionRequest", COMPLETION, TextAnswer, TextAnswer
    ),
    "POST /v1/embeddings": _asked("Create embeddings", "EmbeddingsRequest", EMBEDDING, EmbeddingsAnswer),
    "POST /rerank": _asked(
        "Rank documents by relevance (the engine's format)", "RerankRequest", RERANKING, dict
    ),
    "POST /v1/rerank": _asked(
        "Rank documents by relevance (Jina's format)", "RankRequest", RANKED, RankAnswer
    ),
    "POST /v2/rerank": _asked(
        "Rank documents by relevance (Cohere's format)", "RankRequest", RANKED, RankAnswer
    ),
    "POST /score": _asked("Score pairs of texts", "ScoreRequest", SCORED, ScoreAnswer),
    "POST /tokenize": _asked("Convert text to tokens", "TokenizeRequest", TOKENIZE, TokensAnswer),
    "POST /detokenize": _asked("Convert tokens to text", "DetokenizeRequest", DETOKENIZE, ContentAnswer),
    "POST /apply-template": _asked("Apply the chat template to messages", "ChatRequest", CHAT, PromptAnswer),
    "POST /infill": _asked("Fill in text between a prefix and a suffix", "InfillRequest", INFILL, dict, dict),
    "GET /props": Operation(
        summary="Get a model's properties (llama-server's format)",
        query={"model": Parameter("A model's name or id. Optional if only one model is loaded or stored.")},
        answers={200: Returns("The properties.", dict)},
        errors=_KEPT,
    ),
    "GET /health": Operation(
        summary="Check whether the daemon, or a model, is ready",
        query={"model": Parameter("A model's name or id.")},
        answers={200: Returns("It is ready, or a request would load it.", HealthAnswer)},
        errors=_KEPT,
    ),
    **{
        f"POST {path}": Operation(summary=f"Refused: {sentence.rstrip('.')}", answers={}, errors=_KEPT)
        for path, (sentence, _) in NOT_SERVED.items()
    },
    "POST /v1/messages": _asked("Create a message", "MessageRequest", MESSAGES, MessageAnswer, MessageEvent),
    "POST /v1/messages/count_tokens": _asked(
        "Count the tokens of a request", "MessageTokensRequest", TOKEN_COUNT, MessageTokensAnswer
    ),
    "POST /v1/responses": _asked(
        "Create a response", "ResponseRequest", RESPONSES, ResponseAnswer, ResponseEvent
    ),
    "POST /v1/responses/input_tokens": _asked(
        "Count the tokens of a request", "ResponseRequest", RESPONSES, ResponseTokensAnswer
    ),
    "GET /v1/responses/{response}": Operation(
        summary="Get a stored response",
        query={
            "include": Parameter("Ignored."),
            "include_obfuscation": Parameter("Ignored."),
            "starting_after": Parameter(
                "With `stream`, return only events after the one with this `sequence_number`.", int
            ),
            "stream": Parameter(
                "Return the events of a response that is or was made in the background, to its end. They are "
                "kept for ten minutes after that.",
                bool,
            ),
        },
        answers={
            200: Returns(
                "The response, or a stream of its events.", ResponseAnswer, streams=streamed(ResponseEvent)
            )
        },
        errors=_KEPT,
    ),
    "DELETE /v1/responses/{response}": Operation(
        summary="Delete a stored response; one in progress is cancelled first",
        answers={200: Returns("It was deleted.", ResponseDeleted)},
        errors=_KEPT,
    ),
    "POST /v1/responses/{response}/cancel": Operation(
        summary="Cancel a background response",
        answers={200: Returns("The response, which has ended.", ResponseAnswer)},
        errors=_KEPT | {409},
    ),
    "GET /v1/responses/{response}/input_items": Operation(
        summary="List the input items of a stored response",
        query={
            "after": Parameter("Return only items after the one with this id."),
            "include": Parameter("Ignored."),
            "limit": Parameter("The most items to return, from 1 to 100.", int),
            "order": Parameter("The order of the items, by age.", Literal["asc", "desc"]),
        },
        answers={200: Returns("A page of items.", ResponseItems)},
        errors=_KEPT,
    ),
    "GET /v1/models": Operation(
        summary="List the models in the store",
        headers=_ANTHROPIC,
        answers={200: Returns("The models.", (ListedModels, AnthropicModels))},
        errors=_KEPT,
    ),
    "GET /v1/models/{name}": Operation(
        summary="Get a model",
        path={"name": "A model's name or id. It may contain slashes."},
        headers=_ANTHROPIC,
        answers={200: Returns("The model.", (ListedModel, AnthropicModel))},
        errors=_KEPT,
    ),
}
