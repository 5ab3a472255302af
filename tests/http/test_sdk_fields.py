"""Nothing in a request is dropped without a word.

Each field of the request types of the official SDKs is read by the engine, used by us, refused by its name,
or listed in the header. A newer SDK with a new field fails here.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import pytest

from greenroom.runner.backends.base import Dialect, ignores
from greenroom.runner.backends.discovery import OWN
from greenroom.runner.http.anthropic.fields import MESSAGES, TOKEN_COUNT
from greenroom.runner.http.anthropic.messages import MessageTokens, MessageTranslation
from greenroom.runner.http.completion_fields import COMPLETION, EMBEDDING
from greenroom.runner.http.embedding_dimensions import shortened_if_asked
from greenroom.runner.http.engine_requests import check_now, ignored_by, refuse_what_it_cannot, translate
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.fields import CHAT, Dialogue
from greenroom.runner.http.ollama.embedding import Embed, Embedding
from greenroom.runner.http.ollama.fields import EMBED, EMBEDDINGS, GENERATE, OLLAMA_CHAT
from greenroom.runner.http.ollama.generating import Chat, Generate, Raw
from greenroom.runner.http.responses.fields import RESPONSES
from greenroom.runner.http.responses.input import items_of
from greenroom.runner.http.responses.response import ResponseTranslation, TokenCount
from greenroom.runner.http.translation import Translation
from sdk_requests import Field, Values

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
URL = f"data:image/png;base64,{PNG}"
OTHER = URL[:-2] + "A="
SCHEMA = ({"type": "object"}, {"type": "string"})
VALUES: dict[str, tuple[Any, Any]] = {
    ".image_url.url": (URL, OTHER),
    ".image_url": (URL, OTHER),
    ".source.data": (PNG, PNG[:-2] + "A="),
    ".source.media_type": ("image/png", "image/gif"),
    ".images[]": (PNG, PNG[:-2] + "A="),
    ".images[].value": (PNG, PNG[:-2] + "A="),
    ".arguments": ("{}", '{"a":1}'),
    ".schema": SCHEMA,
    ".input_schema": SCHEMA,
    ".parameters": SCHEMA,
    "logit_bias": ({"5": 1}, {"5": 2}),
    "modalities[]": ("text", "audio"),
    "encoding_format": ("float", "base64"),
    "tool_choice.tools[]": ({"type": "function", "name": "x"}, {"type": "function", "name": "y"}),
}
"""What to send for some fields."""
OLLAMA_VALUES = {
    ".tool_calls[].function.arguments": ({}, {"a": 1}),
    **VALUES,
    "messages[].role": ("user", "assistant"),
    "format": ("json", SCHEMA[1]),
    "think": (True, "high"),
    "keep_alive": ("5m", "6m"),
}


class Family(NamedTuple):
    kinds: tuple[str, ...]
    """The SDK's types, by their modules."""
    dialogue: Dialogue
    translate: Callable[[Mapping[str, Any]], Translation | None] | None = None
    beside: Mapping[str, Any] = {}
    """Fields of every request."""
    here: frozenset[str] = frozenset()
    """Paths of fields that we use ourselves, beside those of every family."""
    values: Mapping[str, tuple[Any, Any]] = VALUES


HELLO = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "x"}}]
ITEM = {"id": "x", "type": "message", "role": "user", "content": "what was stored"}


def _responded(kind: Callable[..., Translation], fields: Mapping[str, Any]) -> Translation:
    items = items_of(fields["input"])
    return kind(fields, [ITEM if one["type"] == "item_reference" else one for one in items])


OURS = frozenset({"model", "stream", "keep_alive", "user"})
RESPONDING = frozenset(
    {"previous_response_id", "store", "background", "input[].id", "input[].status", "text.format"}
)
THOUGHT = frozenset({"messages[].content[].signature"})
"""Ours, and empty."""
FAMILIES = {
    "chat completions": Family(
        ("openai.types.chat.completion_create_params:CompletionCreateParamsBase",), CHAT
    ),
    "completions": Family(("openai.types.completion_create_params:CompletionCreateParamsBase",), COMPLETION),
    "embeddings": Family(
        ("openai.types.embedding_create_params:EmbeddingCreateParams",), EMBEDDING, shortened_if_asked
    ),
    "responses": Family(
        ("openai.types.responses.response_create_params:ResponseCreateParamsBase",),
        RESPONSES,
        partial(_responded, ResponseTranslation),
        {"input": "hi"},
        RESPONDING,
    ),
    "input_tokens": Family(
        ("openai.types.responses.input_token_count_params:InputTokenCountParams",),
        RESPONSES,
        partial(_responded, TokenCount),
        {"input": "hi"},
        RESPONDING,
    ),
    "messages": Family(
        (
            "anthropic.types.message_create_params:MessageCreateParamsBase",
            "anthropic.types.beta.message_create_params:MessageCreateParamsBase",
        ),
        MESSAGES,
        MessageTranslation,
        {"max_tokens": 5},
        THOUGHT,
    ),
    "count_tokens": Family(
        (
            "anthropic.types.message_count_tokens_params:MessageCountTokensParams",
            "anthropic.types.beta.message_count_tokens_params:MessageCountTokensParams",
        ),
        TOKEN_COUNT,
        MessageTokens,
        here=THOUGHT,
    ),
    "api/chat": Family(
        ("ollama._types:ChatRequest",),
        OLLAMA_CHAT,
        Chat,
        {"messages": HELLO},
        frozenset({"messages[].tool_name"}),
        OLLAMA_VALUES,
    ),
    "api/generate": Family(
        ("ollama._types:GenerateRequest",),
        GENERATE,
        Generate,
        {"prompt": "hi"},
        frozenset({"raw"}),
        OLLAMA_VALUES,
    ),
    "api/generate, raw": Family(
        ("ollama._types:GenerateRequest",),
        GENERATE,
        Raw,
        {"prompt": "hi", "raw": True},
        frozenset({"raw"}),
        OLLAMA_VALUES,
    ),
    "api/embed": Family(
        ("ollama._types:EmbedRequest",),
        EMBED,
        Embed,
        {"input": "hi"},
        frozenset({"dimensions", "truncate"}),
        OLLAMA_VALUES,
    ),
    "api/embeddings": Family(
        ("ollama._types:EmbeddingsRequest",), EMBEDDINGS, Embedding, {"prompt": "hi"}, values=OLLAMA_VALUES
    ),
}
NEEDED: dict[str, list[dict[str, Any]]] = {
    "tool_choice": [
        {"tools": [{"type": "function", "function": {"name": name}} for name in "xy"]},
        {"tools": [{"type": "function", "name": name} for name in "xy"]},
        {"tools": [{"name": name, "input_schema": {}} for name in "xy"]},
    ],
    "top_logprobs": [{"logprobs": True, "stream": False}],
}
"""What some fields need beside them, in the forms of the families."""
MISSING = {
    "content": "x",
    "role": "user",
    "call_id": "x",
    "name": "x",
    "image_url": URL,
    "function": {"name": "x"},
    "id": "x",
}
"""What we ask for and the SDK's types do not."""


def engine_gets(family: Family, backend: str, fields: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """What the engine gets, and what of the answer is the request's; and what the header lists."""
    dialect = OWN[backend].dialect
    right = check_now(json.dumps(fields).encode(), family.dialogue)
    ignored = [*right.unread]
    body, chat, more = right.body, right.fields, {}
    translation = family.translate(right.fields) if family.translate else None
    if translation is not None:
        ignored += [*right.unknown, *translation.ignored]
        chat = translation.chat
        body = json.dumps(chat).encode()
        more = {**getattr(translation, "response", {}), "id": "", "created_at": 0}
        more |= {"context": translation.context_size, "stops": translation.stops}
    try:
        refuse_what_it_cannot(backend, dialect, chat)
    except HttpRefusal as refused:
        raise (refused if translation is None else translation.renamed(refused)) from None
    unread = ignored_by(dialect, chat, body)
    ignored += unread if translation is None else map(translation.named, unread)
    gets = re.sub(r'"(msg|fc|fco|rs|call)_\w{20,}"', '""', translate(body, dialect, None).decode())
    return (json.loads(gets), more), [one.partition(" (")[0] for one in ignored]


def asked(family: Family, backend: str, fields: dict[str, Any]) -> tuple[Any, list[str]]:
    """The same for fields that may lack what the SDK's types do not require."""
    for _ in range(4):
        try:
            return engine_gets(family, backend, fields)
        except HttpRefusal as refused:
            *steps, last = re.findall(r"\w+", refused.param or "?")
            if refused.refusal.code != "missing_required_parameter" or last not in MISSING:
                raise
            fields = json.loads(json.dumps(fields))
            inside: Any = fields
            for step in steps:
                inside = inside[int(step) if step.isdecimal() else step]
            inside[last] = MISSING[last]
    raise AssertionError(f"what is missing in {fields}?")


def leads_to(path: str, name: str) -> bool:
    """Whether a name stands for the field or for what it lies in."""
    plain = re.sub(r"\[\d*\]", "", path) + "."
    return plain.startswith(re.sub(r"\[\d*\]", "", name) + ".")


def is_lost(family: Family, backend: str, field: Field) -> str:
    """Why a field is dropped without a word, or how it is not known whether; else empty."""
    needed: list[dict[str, Any]] = next(
        (more for start, more in NEEDED.items() if field.path.startswith(start)), [{}]
    )
    tried = [_lost_beside(family, backend, field, {"model": "m", **family.beside, **more}) for more in needed]
    return tried[0] if all(tried) else ""


def _lost_beside(family: Family, backend: str, field: Field, beside: dict[str, Any]) -> str:
    try:
        gets, ignored = asked(family, backend, _with_an_answer({**beside, **field.value}))
    except HttpRefusal as refused:
        sentence, param = refused.refusal.message, refused.param or ""
        kind = "supports; use one of" in sentence
        right = leads_to(field.path, param.removesuffix(".type") if kind else param)
        named = refused.refusal.code.startswith("unsupported") or kind
        return "" if right and named else f"{refused.param}: {sentence}"
    if field.path in family.here | OURS or any(leads_to(field.path, one) for one in ignored):
        return ""
    if family.translate is None or family.translate is shortened_if_asked:
        return "" if field.path in READ else "no engine is known to read it"
    try:
        other, _ = asked(family, backend, _with_an_answer({**beside, **field.other}))
    except HttpRefusal as refused:
        return "" if refused.refusal.code.startswith("unsupported") else f"without it: {refused}"
    return "" if gets != other else "it changes nothing"


def _with_an_answer(fields: dict[str, Any]) -> dict[str, Any]:
    """With a message of the assistant at the end, to which what was thought belongs."""
    if not isinstance(fields.get("input"), list) or not all(isinstance(one, dict) for one in fields["input"]):
        return fields
    return {**fields, "input": [*fields["input"], {"role": "assistant", "content": "x"}]}


def fields_of(family: Family) -> Iterator[Field]:
    """All fields but `type`, which says what the others are; in messages of each role."""
    answers = family.translate in (MessageTranslation, MessageTokens)
    met = set()
    for kind in family.kinds:
        module, _, name = kind.partition(":")
        for field in Values(family.values).fields_of(getattr(importlib.import_module(module), name)):
            if not field.path.endswith("type") and (known := json.dumps(field)) not in met:
                met.add(known)
                yield field
                if answers and field.path.startswith("messages[]."):
                    yield field._replace(value=_by(field.value), other=_by(field.other))


def _by(fields: dict[str, Any]) -> dict[str, Any]:
    """The same fields, said by the assistant."""
    messages = [{**one, "role": "assistant"} for one in fields["messages"]]
    return {**fields, "messages": messages}


READ = frozenset(
    (
        *("messages[].content", "messages[].content[].text", "messages[].content[].image_url"),
        *("messages[].content[].input_audio.data", "messages[].content[].input_audio.format"),
        *("messages[].content[].refusal", "messages[].name", "messages[].tool_call_id"),
        *("messages[].tool_calls[].id", "messages[].tool_calls[].function.name"),
        *("messages[].tool_calls[].function.arguments", "messages[].refusal"),
        *("tools[].function.name", "tools[].function.description", "tools[].function.parameters"),
        *("tools[].function.strict", "tool_choice", "tool_choice.function.name", "parallel_tool_calls"),
        *("response_format", "response_format.json_schema.schema", "response_format.json_schema.strict"),
        "response_format.json_schema.name",  # it only tells schemas apart
        *("prompt", "prompt[]", "prompt[][]", "input", "input[]", "input[][]"),
        *("max_tokens", "max_completion_tokens", "stop", "stop[]", "n", "seed", "temperature", "top_p"),
        *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"),
        *("modalities[]", "reasoning_effort", "stream_options.include_usage"),
        *("encoding_format", "dimensions", "echo"),
    )
)
"""Fields that go to engines as they are, and that all of them read unless their `Dialect` says otherwise."""


@pytest.mark.parametrize("backend", ["llama.cpp", "mlx", "vllm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_field_of_an_sdk_is_dropped_without_a_word(family: str, backend: str) -> None:
    fields = [*fields_of(FAMILIES[family])]
    assert fields
    lost = {one.path: why for one in fields if (why := is_lost(FAMILIES[family], backend, one))}
    assert not lost


async def test_the_header_lists_what_has_no_effect_by_the_names_of_the_client(open_server: Any) -> None:
    ignoring = Dialect(dropped=frozenset({"typical_p"}), ignores=ignores("parallel_tool_calls"))
    server = await open_server(backend={"dialect": ignoring})
    cached = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
    message = {"max_tokens": 5, "messages": [{"role": "user", "content": [cached, cached]}]}
    sent: dict[str, tuple[dict[str, Any], str]] = {
        "/v1/chat/completions": (
            {"messages": HELLO, "store": True, "parallel_tool_calls": False, "keep_alive": "5m", "odd": 1},
            "store, parallel_tool_calls",
        ),
        "/v1/messages": (
            {**message, "tool_choice": {"type": "auto"}, "speed": "fast", "keep_alive": "5m"},
            "speed, messages[].content[].cache_control",
        ),
        "/api/chat": (
            # Tools pass a filter of ours, since the model has no place for them.
            {"messages": HELLO, "options": {"typical_p": 0.5, "numa": True}, "stream": False, "tools": TOOLS},
            "options.numa, options.typical_p",
        ),
    }
    for path, (fields, listed) in sent.items():
        async with server.post(path, {"model": "tiny", **fields}) as response:
            assert response.status == 200, await response.text()
            assert response.headers["X-Greenroom-Ignored"] == listed, path


def test_a_message_holds_the_blocks_of_its_role() -> None:
    call = {"type": "tool_use", "id": "a", "name": "add", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "2"}
    said = {"user": result, "assistant": call, "system": {"type": "text", "text": "Be kind."}}
    made = [{"role": role, "content": [block]} for role, block in said.items()]
    fields = {"model": "m", "max_tokens": 5, "messages": made}
    chat = MessageTranslation(check_now(json.dumps(fields).encode(), MESSAGES).fields).chat
    assert [one["role"] for one in chat["messages"]] == ["tool", "assistant", "system"]
    for role, block in (("user", call), ("assistant", result), ("system", result)):
        wrong = {**fields, "messages": [{"role": role, "content": [block]}]}
        with pytest.raises(HttpRefusal, match=f"not a block of role {role} that") as caught:
            check_now(json.dumps(wrong).encode(), MESSAGES)
        assert caught.value.param == "messages[0].content[0].type"
