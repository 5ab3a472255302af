"""The messages of Ollama's chats, as OpenAI has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode

_IMAGES = {"/9j/": "jpeg", "iVBOR": "png", "R0lG": "gif", "UklGR": "webp"}
"""What the base64 of an image begins with."""


def messages_of(given: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The messages as OpenAI has them, where each call of a tool has an id and each result names it."""
    open_calls: list[tuple[str, str]] = []
    made = 0
    for one in given:
        message: dict[str, Any] = {"role": one["role"], "content": _content(one)}
        if thinking := one.get("thinking"):
            message["reasoning_content"] = thinking
        calls = []
        for call in one.get("tool_calls") or ():
            made += 1
            function = call["function"]
            known_as = call.get("id") or f"call_{made}"
            open_calls.append((known_as, function["name"]))
            arguments = _encode(function.get("arguments") or {}).decode()
            calls.append(
                {
                    "id": known_as,
                    "type": "function",
                    "function": {"name": function["name"], "arguments": arguments},
                }
            )
        if calls:
            message["tool_calls"] = calls
        if one["role"] == "tool":
            message["tool_call_id"] = one.get("tool_call_id") or _answered(open_calls, one.get("tool_name"))
        yield message


def _answered(open_calls: list[tuple[str, str]], name: str | None) -> str:
    """The id of the first call that has no result yet, of this tool where it is named."""
    found = next((one for one in open_calls if name in (None, "", one[1])), None)
    if found is None:
        return "call_0"
    open_calls.remove(found)
    return found[0]


def _content(message: Mapping[str, Any]) -> str | list[dict[str, Any]]:
    text = message.get("content") or ""
    images = message.get("images")
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    return parts + [{"type": "image_url", "image_url": {"url": _url(image)}} for image in images]


def _url(image: str) -> str:
    if image.startswith("data:"):
        return image
    kind = next((kind for start, kind in _IMAGES.items() if image.startswith(start)), "jpeg")
    return f"data:image/{kind};base64,{image}"
