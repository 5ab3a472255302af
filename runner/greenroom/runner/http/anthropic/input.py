"""The messages of a chat that those of Anthropic's Messages API stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode

Block = Mapping[str, Any]


def messages_of(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a checked request, its system prompt first."""
    messages: list[dict[str, Any]] = []
    if system := _content(_blocks(fields.get("system") or ())):
        messages.append({"role": "system", "content": system})
    for message in fields["messages"]:
        blocks = _blocks(message["content"])
        messages += _assistant(blocks) if message["role"] == "assistant" else _user(blocks, message["role"])
    return messages


def _blocks(content: Any) -> list[Block]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content)


def _user(blocks: Iterable[Block], role: str) -> Iterator[dict[str, Any]]:
    """What tools have answered, each a message of its own, and then what the user or the system says."""
    said = []
    for block in blocks:
        if block["type"] == "tool_result":
            content = _content(_blocks(block.get("content") or ""))
            if block.get("is_error") and isinstance(content, str):
                # A chat has no other place for it.
                content = f"Error: {content}"
            yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}
        else:
            said.append(block)
    if said:
        yield {"role": role, "content": _content(said)}


def _assistant(blocks: Iterable[Block]) -> Iterator[dict[str, Any]]:
    said, calls, thoughts = [], [], ""
    for block in blocks:
        match block["type"]:
            case "tool_use":
                function = {"name": block["name"], "arguments": _encode(block["input"]).decode()}
                calls.append({"id": block["id"], "type": "function", "function": function})
            case "thinking":
                thoughts += block["thinking"]
            case "text":
                said.append(block)
    message: dict[str, Any] = {"role": "assistant", "content": _content(said)}
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = calls
    yield message


def _content(blocks: Iterable[Block]) -> Any:
    """A text where it is one, else a list of parts as chats have them."""
    parts = [_part(block) for block in blocks]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(block: Block) -> dict[str, Any]:
    if block["type"] == "image":
        source = block["source"]
        data = f"data:{source.get('media_type', 'image/png')};base64,{source.get('data')}"
        url = source["url"] if source["type"] == "url" else data
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "text", "text": block.get("text", "")}
