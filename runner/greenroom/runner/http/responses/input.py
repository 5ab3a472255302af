"""The input of a response: items of the Responses API, and the messages of a chat that they stand for."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Item = dict[str, Any]

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"


def items_of(given: str | Sequence[Item]) -> list[Item]:
    """The checked input as whole items, each with an id, as clients get them back."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_whole(item) for item in given]


def _whole(item: Item) -> Item:
    kind = item.get("type") or "message"
    if kind == "item_reference":
        return item
    whole = {**item, "type": kind, "id": item.get("id") or new_id(_PREFIXES[kind])}
    if kind != "reasoning":
        whole["status"] = item.get("status") or "completed"
    else:
        whole.setdefault("summary", [])
    if kind == "message":
        content, assistant = item["content"], item["role"] == "assistant"
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        whole["content"] = [_whole_part(part, assistant) for part in parts]
    return whole


def _whole_part(part: Item, assistant: bool) -> Item:
    if part["type"] not in ("text", "input_text", "output_text"):
        return part
    if assistant:
        return {"annotations": [], **part, "type": "output_text"}
    return {**part, "type": "input_text"}


def references_in(given: Any) -> list[str]:
    """The ids of items that an input, checked or not, refers to."""
    if not isinstance(given, list):
        return []
    ids = (
        item.get("id")
        for item in given
        if isinstance(item, dict)
        and (item.get("type") == "item_reference" or (item.get("type") is None and "role" not in item))
    )
    return [one for one in ids if isinstance(one, str)]


def messages_of(instructions: str, items: Iterable[Item]) -> list[dict[str, Any]]:
    """The messages of a chat: what the model said or called in a row is one message of the assistant.

    Instructions for the model at the beginning are one message: many templates take no second one.
    """
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for message in _in_a_row(items):
        if message["role"] == "system" and [one["role"] for one in messages] == ["system"]:
            messages[0]["content"] = _joined(messages[0]["content"], message["content"])
        else:
            messages.append(message)
    return messages


def _in_a_row(items: Iterable[Item]) -> Iterator[dict[str, Any]]:
    said: dict[str, Any] = {}
    """The assistant's message that is being put together."""
    for item in items:
        kind = item["type"]
        own = kind in ("reasoning", "function_call") or (kind == "message" and item["role"] == "assistant")
        # A second text, or thoughts after a text, begin another turn.
        if said and (not own or (kind != "function_call" and ("content" in said or "tool_calls" in said))):
            yield from _turn(said)
            said = {}
        if kind == "reasoning":
            thoughts = "".join(part["text"] for part in item.get("content") or item.get("summary") or ())
            if thoughts:
                said["reasoning_content"] = said.get("reasoning_content", "") + thoughts
        elif kind == "function_call":
            said.setdefault("tool_calls", []).append(_call(item))
        elif kind == "function_call_output":
            yield {"role": "tool", "tool_call_id": item["call_id"], "content": _content(item["output"])}
        elif own:
            said["content"] = _content(item["content"])
        else:
            role = "system" if item["role"] == "developer" else item["role"]
            yield {"role": role, "content": _content(item["content"])}
    yield from _turn(said)


def _turn(said: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A message of the assistant; thoughts that led to nothing are none."""
    if "content" in said or "tool_calls" in said:
        yield {"role": "assistant", "content": "", **said}


def _call(item: Item) -> dict[str, Any]:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _content(content: Any) -> Any:
    """A text where it is one, else a list of parts as chats have them."""
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    match part["type"]:
        case "input_image":
            detail = {"detail": part["detail"]} if "detail" in part else {}
            return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
        case "input_audio":
            return {"type": "input_audio", "input_audio": part["input_audio"]}
        case "refusal":
            return {"type": "text", "text": part["refusal"]}
    return {"type": "text", "text": part["text"]}


def _joined(one: Any, other: Any) -> Any:
    if isinstance(one, str) and isinstance(other, str):
        return f"{one}\n\n{other}"
    parts = [[{"type": "text", "text": each}] if isinstance(each, str) else each for each in (one, other)]
    return parts[0] + parts[1]
