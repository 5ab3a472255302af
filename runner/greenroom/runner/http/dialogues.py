"""What the requests of each family may hold: OpenAI's chats, completions and embeddings, Anthropic's
messages, rerankings. What is refused here needs no engine to be seen, so it is refused before one is loaded,
with one sentence whatever the engine. Fields that are not named pass as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from greenroom.runner.http.fields import (
    Check,
    Wrong,
    any_object,
    array,
    by_type,
    count,
    either,
    flag,
    missing,
    number,
    one_of,
    record,
    text,
    tokens,
    whole,
)

_NAME = 256
"""Characters of a tool's name; OpenAI takes 64, and tool servers make longer ones."""


@dataclass(frozen=True)
class Dialogue:
    """The fields of one family's requests."""

    fields: Mapping[str, Check]
    required: tuple[str, ...] = ()
    together: Callable[[dict[str, Any]], None] = field(default=lambda _: None)
    """Looks at the fields together. Raises Wrong."""


# what messages are made of

_text_part = record({"text": text()}, required=("text",))


def _url(value: Any, where: str) -> Any:
    text(least=1)(value, where)
    # Engines would open files of this machine, or read on from addresses that are none.
    if not value[:8].lower().startswith(("data:", "http://", "https://")):
        raise Wrong(where, f"{where} must be a data: or http(s): URL.")
    return value


_linked = either("a URL or an object with one", (str, _url), (dict, record({"url": _url}, required=("url",))))


def _link(name: str) -> Check:
    return record({name: _linked}, required=(name,))


_PARTS = {
    "text": _text_part,
    "image_url": _link("image_url"),
    "input_audio": record(
        {"input_audio": record({"data": text(), "format": text()}, required=("data",))}, ("input_audio",)
    ),
    "audio_url": _link("audio_url"),
    "video_url": _link("video_url"),
    "refusal": record({"refusal": text()}, required=("refusal",)),
}
_content = either(
    "a string or a list of parts", (str, text()), (list, array(by_type(_PARTS, "kind of content"), least=1))
)


def _arguments(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return value
    text()(value, where)
    try:
        if value.strip():
            msgspec.json.decode(value.encode())
            return value
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise Wrong(where, f"{where} must hold JSON, as the model wrote it.") from None
    # A call without arguments is often remembered as an empty text, which engines cannot parse.
    return "{}"


_function_call = record({"name": text(least=1), "arguments": _arguments}, required=("name",))
_tool_call = by_type(
    {"function": record({"id": text(), "function": _function_call}, required=("function",))},
    "tool call",
    default="function",
)


def _message(value: dict[str, Any], where: str) -> None:
    if "content" in value:
        return
    if value["role"] != "assistant":
        raise missing(f"{where}.content")
    if not any(value.get(name) for name in ("tool_calls", "function_call", "refusal", "reasoning_content")):
        raise Wrong(
            f"{where}.content",
            f"{where} must have content or tool_calls: it is an assistant's message.",
            "missing_required_parameter",
        )


_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_chat_message = record(
    {
        "role": one_of(*_ROLES),
        "content": _content,
        "name": text(),
        "tool_call_id": text(),
        "tool_calls": array(_tool_call),
        "function_call": _function_call,
        "refusal": text(),
        "reasoning_content": text(),
    },
    required=("role",),
    then=_message,
)

# what they ask for

_function = record(
    {
        "name": text(least=1, most=_NAME),
        "description": text(),
        "parameters": any_object,
        "strict": flag,
    },
    required=("name",),
)
_tool = by_type({"function": record({"function": _function}, required=("function",))}, "kind of tool")
_named_tool = by_type(
    {
        "function": record(
            {"function": record({"name": text(least=1)}, required=("name",))}, required=("function",)
        )
    },
    "choice of a tool",
)
_schema = record({"name": text(), "schema": any_object, "strict": flag, "description": text()})
_response_format = by_type(
    {
        "text": any_object,
        "json_object": record({"schema": any_object}),
        "json_schema": record({"json_schema": _schema}, required=("json_schema",)),
    },
    "response format",
)


def _bias(value: Any, where: str) -> Any:
    any_object(value, where)
    weigh = number(-100, 100)
    for name, weight in value.items():
        if not name.removeprefix("-").isdecimal():
            raise Wrong(where, f"{where} must map token ids to numbers.")
        weigh(weight, f"{where}.{name[:20]}")
    return value


_SAMPLING: dict[str, Check] = {
    "model": text(least=1),
    "stream": flag,
    "stream_options": record({"include_usage": flag}),
    "max_tokens": count,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": whole(-1, 2**31 - 1),
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "n": whole(1, 128),
    "seed": whole(),
    "stop": either("a string or a list of strings", (str, text()), (list, array(text(), most=64))),
    "logit_bias": _bias,
    "user": text(),
    "id_slot": whole(),
    "reasoning_format": one_of("none", "auto", "deepseek", "deepseek-legacy"),
}


def _chat_together(fields: dict[str, Any]) -> None:
    tools = fields.get("tools") or ()
    choice = fields.get("tool_choice")
    if choice == "required" and not tools:
        raise Wrong("tool_choice", 'tool_choice is "required", but there are no tools.')
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        if not any(tool["function"]["name"] == name for tool in tools):
            raise Wrong("tool_choice", "tool_choice names a function that is not among the tools.")
    if fields.get("top_logprobs") and not fields.get("logprobs"):
        raise Wrong("top_logprobs", "top_logprobs needs logprobs to be true.")
    if any(kind != "text" for kind in fields.get("modalities", ())):
        raise Wrong("modalities", "modalities: only text answers are supported.", "unsupported_value")
    for name in ("functions", "function_call"):
        if fields.get(name):
            raise Wrong(name, f"{name} is not supported; use tools.", "unsupported_parameter")


CHAT = Dialogue(
    {
        **_SAMPLING,
        "messages": array(_chat_message, least=1),
        "max_completion_tokens": count,
        "logprobs": flag,
        "top_logprobs": whole(0, 20),
        "tools": array(_tool),
        "tool_choice": either(
            "a word or an object", (str, one_of("none", "auto", "required")), (dict, _named_tool)
        ),
        "parallel_tool_calls": flag,
        "response_format": _response_format,
        "modalities": array(text()),
        "functions": array(any_object),
        "reasoning_effort": text(),
        "chat_template_kwargs": any_object,
        "grammar": text(),
        "json_schema": any_object,
    },
    required=("messages",),
    together=_chat_together,
)


def _prompts(least: int) -> Check:
    """A text, a list of texts, a list of tokens, or a list of lists of tokens."""
    one = text(least=least)

    def check(value: Any, where: str) -> Any:
        if isinstance(value, str):
            return one(value, where)
        if not isinstance(value, list):
            raise _wrong_prompt(where)
        if not value:
            raise Wrong(where, f"{where} must not be empty.")
        if isinstance(value[0], str):
            return array(one)(value, where)
        if isinstance(value[0], list):
            return array(tokens)(value, where)
        return tokens(value, where)

    return check


def _wrong_prompt(where: str) -> Wrong:
    """A prompt that is neither text nor tokens."""
    return Wrong(where, f"{where} must be a string, or a list of strings or of tokens.", "invalid_type")


COMPLETION = Dialogue(
    {
        **_SAMPLING,
        "prompt": _prompts(least=0),
        "suffix": text(),
        "echo": flag,
        "best_of": whole(1, 128),
        "logprobs": either("a whole number", (bool, flag), (int, whole(0, 20))),
        "response_format": _response_format,
        "grammar": text(),
        "json_schema": any_object,
    },
    required=("prompt",),
)

EMBEDDING = Dialogue(
    {
        "model": text(least=1),
        "input": _prompts(least=1),
        "encoding_format": one_of("float", "base64"),
        "dimensions": count,
        "user": text(),
    },
    required=("input",),
)

# Anthropic's

_source = by_type(
    {
        "base64": record({"data": text(least=1), "media_type": text()}, required=("data",)),
        "url": record({"url": _url}, required=("url",)),
    },
    "source",
)
_BLOCKS: dict[str, Check] = {
    "text": _text_part,
    "image": record({"source": _source}, required=("source",)),
    "tool_use": record(
        {"id": text(), "name": text(least=1), "input": any_object}, required=("id", "name", "input")
    ),
    "thinking": record({"thinking": text()}, required=("thinking",)),
    "redacted_thinking": any_object,
}
_result = array(by_type({name: _BLOCKS[name] for name in ("text", "image")}, "content of a tool's result"))
_BLOCKS["tool_result"] = record(
    {
        "tool_use_id": text(least=1),
        "content": either("a string or a list of blocks", (str, text()), (list, _result)),
        "is_error": flag,
    },
    required=("tool_use_id",),
)
_blocks = either(
    "a string or a list of blocks", (str, text()), (list, array(by_type(_BLOCKS, "block"), least=1))
)
_anthropic_tool = by_type(
    {
        "custom": record(
            {"name": text(least=1, most=_NAME), "description": text(), "input_schema": any_object},
            required=("name", "input_schema"),
        )
    },
    "kind of tool",
    default="custom",
)
_anthropic_choice = by_type(
    {
        **dict.fromkeys(("auto", "any", "none"), record({"disable_parallel_tool_use": flag})),
        "tool": record({"name": text(least=1)}, required=("name",)),
    },
    "choice of a tool",
)


def _messages_together(fields: dict[str, Any]) -> None:
    choice, tools = fields.get("tool_choice") or {}, fields.get("tools") or ()
    if choice.get("type") in ("any", "tool") and not tools:
        raise Wrong("tool_choice", "tool_choice asks for a tool, but there are no tools.")
    if choice.get("type") == "tool" and not any(tool["name"] == choice["name"] for tool in tools):
        raise Wrong("tool_choice", "tool_choice names a tool that is not among the tools.")


_MESSAGES: dict[str, Check] = {
    "model": text(least=1),
    "messages": array(
        record({"role": one_of("user", "assistant"), "content": _blocks}, required=("role", "content")),
        least=1,
    ),
    "system": either("a string or a list of blocks", (str, text()), (list, array(_text_part))),
    "stream": flag,
    "max_tokens": count,
    "temperature": number(0, 1),
    "top_p": number(0, 1),
    "top_k": whole(0, 2**31 - 1),
    "stop_sequences": array(text()),
    "tools": array(_anthropic_tool),
    "tool_choice": _anthropic_choice,
    "metadata": any_object,
    "thinking": any_object,
}
MESSAGES = Dialogue(_MESSAGES, required=("messages", "max_tokens"), together=_messages_together)
TOKEN_COUNT = Dialogue(_MESSAGES, required=("messages",), together=_messages_together)

_document = either("a string or an object", (str, text()), (dict, record({"text": text()})))


def _documents(fields: dict[str, Any]) -> None:
    if "documents" not in fields and "texts" not in fields:
        raise missing("documents")


RERANKING = Dialogue(
    {
        "model": text(least=1),
        "query": text(),
        "documents": array(_document, least=1),
        "texts": array(text(), least=1),
        "top_n": count,
        "return_documents": flag,
    },
    required=("query",),
    together=_documents,
)

_scored = either("a string or a list of strings", (str, text()), (list, array(text(), least=1)))
SCORING = Dialogue({"model": text(least=1), "text_1": _scored, "text_2": _scored})
