"""Anthropic's Messages API over chat completions."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.anthropic.input import messages_of
from greenroom.runner.http.errors import frame
from greenroom.runner.http.port import EVENT_STREAM
from greenroom.runner.http.translation import Translation

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_REASONS = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_TOOL = (
    *(("name", "name"), ("description", "description"), ("strict", "strict")),
    ("input_schema", "parameters"),
)


class MessageTranslation(Translation):
    """Makes a chat of a request, and a message of its blocks of the chat's answer."""

    content_type = EVENT_STREAM
    names: ClassVar = {
        "response_format": "output_config.format",
        "stop": "stop_sequences",
        "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "tools[].function.strict": "tools[].strict",
    }

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self._usage: Mapping[str, Any] = {}
        self._finish = ""
        self._stopped_by: str | None = None
        self._index = -1
        self._open = ""
        """The type of the block that is open."""
        self._call_index: int | None = None
        """The engine's index of the call that is open."""
        self._calls = False

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(filter(None, self._fields.get("stop_sequences") or ()))

    @property
    def chat(self) -> dict[str, Any]:
        fields = self._fields
        stream = bool(fields.get("stream"))
        chat: dict[str, Any] = {"model": fields["model"], "messages": messages_of(fields), "stream": stream}
        if stream:
            chat["stream_options"] = {"include_usage": True}
        chat |= {
            name: fields[name] for name in ("max_tokens", "temperature", "top_p", "top_k") if name in fields
        }
        if fields.get("stop_sequences"):
            chat["stop"] = fields["stop_sequences"]
        if user := (fields.get("metadata") or {}).get("user_id"):
            chat["user"] = user
        if fields.get("tools"):
            chat["tools"] = [
                {
                    "type": "function",
                    "function": {name: tool[given] for given, name in _TOOL if given in tool},
                }
                for tool in fields["tools"]
            ]
            chat |= _choice(fields.get("tool_choice") or {"type": "auto"})
        output = fields.get("output_config") or {}
        if (form := output.get("format")) is not None:
            schema = {"name": "output", "schema": form["schema"], "strict": True}
            chat["response_format"] = {"type": "json_schema", "json_schema": schema}
        template: dict[str, Any] = {}
        if "thinking" in fields:
            template["enable_thinking"] = fields["thinking"]["type"] != "disabled"
        if "effort" in output:
            chat["reasoning_effort"] = template["reasoning_effort"] = output["effort"]
        return {**chat, "chat_template_kwargs": template} if template else chat

    # a stream

    def begin(self) -> bytes:
        return _event("message_start", {"message": self._message([], None)})

    def event(self, chunk: Mapping[str, Any]) -> bytes:
        self._usage = chunk.get("usage") or self._usage
        pieces: list[bytes] = []
        for choice in chunk.get("choices") or ():
            self._note(choice)
            delta = choice.get("delta") or {}
            if thoughts := delta.get("reasoning_content") or delta.get("reasoning"):
                pieces += self._add("thinking", {"type": "thinking_delta", "thinking": thoughts})
            if text := delta.get("content"):
                pieces += self._add("text", {"type": "text_delta", "text": text})
            for call in delta.get("tool_calls") or ():
                pieces += self._add_call(call)
        return b"".join(pieces)

    def end(self) -> bytes:
        ending = {"stop_reason": self._reason, "stop_sequence": self._stopped_by}
        return b"".join(
            (
                *self._close(),
                _event("message_delta", {"delta": ending, "usage": _usage(self._usage)}),
                _event("message_stop", {}),
            )
        )

    def error(self, refusal: Refusal, param: str | None, request_id: str) -> bytes:
        return frame(refusal, param, "anthropic", request_id)

    # without a stream

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        self._usage = completion.get("usage") or {}
        choice = completion["choices"][0]
        self._note(choice)
        message = choice.get("message") or {}
        content: list[dict[str, Any]] = []
        if thoughts := message.get("reasoning_content") or message.get("reasoning"):
            content.append({"type": "thinking", "thinking": thoughts, "signature": ""})
        if text := message.get("content"):
            content.append({"type": "text", "text": text})
        for call in message.get("tool_calls") or ():
            self._calls = True
            content.append(
                {**_call(call), "input": _input((call.get("function") or {}).get("arguments") or "{}")}
            )
        return _encode(self._message(content, self._reason))

    # what is common

    def _note(self, choice: Mapping[str, Any]) -> None:
        self._finish = choice.get("finish_reason") or self._finish
        if (stopped := choice.get("stop_reason")) in (self._fields.get("stop_sequences") or ()):
            self._stopped_by = stopped

    @property
    def _reason(self) -> str:
        if self._stopped_by is not None:
            return "stop_sequence"
        if self._finish == "stop" and self._calls:
            return "tool_use"
        return _REASONS.get(self._finish, "end_turn")

    def _message(self, content: list[dict[str, Any]], reason: str | None) -> dict[str, Any]:
        return {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": self._fields["model"],
            "content": content,
            "stop_reason": reason,
            "stop_sequence": self._stopped_by,
            "usage": _usage(self._usage),
        }

    def _add(self, kind: str, delta: Mapping[str, Any]) -> Iterator[bytes]:
        """A further piece of a block of this type."""
        if self._open != kind:
            empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}
            yield from self._opened(kind, {"type": kind, **empty[kind]})
        yield self._delta(delta)

    def _add_call(self, call: Mapping[str, Any]) -> Iterator[bytes]:
        index = call.get("index") or 0
        if self._open != "tool_use" or self._call_index != index:
            yield from self._opened("tool_use", {**_call(call), "input": {}})
            self._call_index, self._calls = index, True
        if arguments := (call.get("function") or {}).get("arguments"):
            json = arguments if isinstance(arguments, str) else _encode(arguments).decode()
            yield self._delta({"type": "input_json_delta", "partial_json": json})

    def _opened(self, kind: str, block: Mapping[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        self._open, self._index = kind, self._index + 1
        yield _event("content_block_start", {"index": self._index, "content_block": block})

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": delta})

    def _close(self) -> Iterator[bytes]:
        if self._open:
            self._open = ""
            yield _event("content_block_stop", {"index": self._index})


class MessageTokens(MessageTranslation):
    """A request whose tokens are only counted."""

    answers = "input_tokens"

    @property
    def stops(self) -> tuple[str, ...]:
        return ()

    def whole(self, completion: Mapping[str, Any]) -> bytes:
        return _encode({"input_tokens": completion["input_tokens"]})


def _event(name: str, fields: Mapping[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), _encode({"type": name, **fields}))


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    name = (call.get("function") or {}).get("name") or ""
    return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": name}


def _input(arguments: Any) -> dict[str, Any]:
    """A call's arguments as an object; what a model wrote that is none is kept under a name of its own."""
    try:
        found = _decode(arguments) if isinstance(arguments, str) else arguments
    except (msgspec.DecodeError, RecursionError):
        found = arguments
    return found if isinstance(found, dict) else {"arguments": found}


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {name: tool[given] for given, name in _TOOL if given in tool}}


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if choice["type"] == "tool":
        found["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif choice["type"] != "auto":
        found["tool_choice"] = _CHOICES[choice["type"]]
    if "disable_parallel_tool_use" in choice:
        found["parallel_tool_calls"] = not choice["disable_parallel_tool_use"]
    return found


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens; those read from a cache are counted apart."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": max(0, (usage.get("prompt_tokens") or 0) - cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.get("completion_tokens") or 0,
    }
