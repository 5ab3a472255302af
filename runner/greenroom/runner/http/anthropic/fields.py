"""What the requests of Anthropic's Messages API may hold."""

from __future__ import annotations

from typing import Any

from greenroom.runner.http.fields import (
    TOOL_NAME,
    Check,
    Dialogue,
    any_object,
    array,
    base64_image,
    by_type,
    count,
    described,
    either,
    flag,
    json_schema,
    keep_alive,
    number,
    one_of,
    record,
    text,
    unread,
    whole,
)
from greenroom.runner.http.wrong_fields import Wrong, not_fetched


def _address(_: Any, where: str) -> Any:
    raise not_fetched(where)


def _file(_: Any, where: str) -> Any:
    raise Wrong(
        where, f"{where} names a file of Anthropic's service. Send the image in base64.", "unsupported_value"
    )


for _refused in (_address, _file):
    described(_refused, type="null", description="Not supported. Send the image in base64.")
_text = record({"text": text()}, required=("text",))
_media_type = one_of("image/png", "image/jpeg", "image/jpg", "image/gif", "image/webp", "image/bmp")

_source = by_type(
    {
        "base64": record({"data": base64_image, "media_type": _media_type}, required=("data",)),
        "url": _address,
        "file": _file,
    },
    "source",
)
_BLOCKS: dict[str, Check] = {
    "text": _text,
    "image": record({"source": _source}, required=("source",)),
    "tool_use": record(
        {"id": text(), "name": text(least=1), "input": any_object}, required=("id", "name", "input")
    ),
    "thinking": record({"thinking": text(), "signature": text()}, required=("thinking",)),
    "redacted_thinking": record({"data": unread}),
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
_SAID = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
"""The blocks of each role's messages."""


def _message_of(role: str) -> Check:
    kinds = by_type({name: _BLOCKS[name] for name in _SAID[role]}, f"block of role {role}")
    blocks = either("a string or a list of blocks", (str, text()), (list, array(kinds, least=1)))
    return record({"role": one_of(*_SAID), "content": blocks}, required=("role", "content"))


_MESSAGE = {role: _message_of(role) for role in _SAID}


def _message(value: Any, where: str) -> Any:
    role = value.get("role") if isinstance(value, dict) else None
    return _MESSAGE[role if isinstance(role, str) and role in _MESSAGE else "user"](value, where)


described(_message, anyOf=[*_MESSAGE.values()])
_only_text = by_type({"text": _text}, "block of a system prompt")
_format = by_type({"json_schema": record({"schema": json_schema}, required=("schema",))}, "output format")
_tool = by_type(
    {
        "custom": record(
            {
                "name": text(least=1, most=TOOL_NAME),
                "description": text(),
                "input_schema": json_schema,
                "strict": flag,
            },
            required=("name", "input_schema"),
        )
    },
    "kind of tool",
    default="custom",
)
_choice = by_type(
    {
        **dict.fromkeys(("auto", "any", "none"), record({"disable_parallel_tool_use": flag})),
        "tool": record({"name": text(least=1), "disable_parallel_tool_use": flag}, required=("name",)),
    },
    "choice of a tool",
)


def _together(fields: dict[str, Any]) -> None:
    choice, tools = fields.get("tool_choice") or {}, fields.get("tools") or ()
    if choice.get("type") in ("any", "tool") and not tools:
        raise Wrong("tool_choice", "tool_choice requires a tool, but there are no tools.")
    if choice.get("type") == "tool" and not any(tool["name"] == choice["name"] for tool in tools):
        raise Wrong("tool_choice", "tool_choice names a tool that is not among the tools.")


_MESSAGES: dict[str, Check] = {
    "model": text(least=1),
    "messages": array(_message, least=1),
    "system": either("a string or a list of blocks", (str, text()), (list, array(_only_text))),
    "stream": flag,
    "max_tokens": count,
    "temperature": number(0, 1),
    "top_p": number(0, 1),
    "top_k": whole(0, 2**31 - 1),
    "stop_sequences": array(text(1), most=64),
    "tools": array(_tool),
    "tool_choice": _choice,
    "metadata": record({"user_id": text()}),
    "thinking": by_type(
        dict.fromkeys(("enabled", "adaptive", "between_tools", "disabled"), record({})), "kind of thinking"
    ),
    "output_config": record({"effort": text(least=1), "format": _format}),
    "keep_alive": keep_alive,
}
MESSAGES = Dialogue(_MESSAGES, required=("messages", "max_tokens"), together=_together)
TOKEN_COUNT = Dialogue(_MESSAGES, required=("messages",), together=_together)
