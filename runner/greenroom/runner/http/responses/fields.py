"""What the requests of OpenAI's Responses API may hold."""

from __future__ import annotations

from typing import Any

from greenroom.runner.http.fields import (
    CHAT,
    Check,
    Dialogue,
    any_object,
    arguments,
    array,
    by_type,
    count,
    described,
    either,
    flag,
    image_url,
    json_schema,
    keep_alive,
    number,
    one_of,
    record,
    refused,
    text,
    unread,
    whole,
)
from greenroom.runner.http.wrong_fields import Wrong, wrong_type

PASSED_ON = (
    *("top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("user", "id_slot", "grammar", "chat_template_kwargs", "reasoning_format"),
)
"""Fields that only chats have at OpenAI, and that engines understand."""
_METADATA, _KEY, _VALUE = 16, 64, 512
"""Entries, and characters of their names and values."""
LOGPROBS = "message.output_text.logprobs"
"""What `include` asks for to get the probabilities of tokens."""


def _metadata(value: Any, where: str) -> Any:
    any_object(value, where)
    if len(value) > _METADATA:
        raise Wrong(where, f"{where} has {len(value)} entries; the limit is {_METADATA}.")
    for name, one in value.items():
        text(most=_KEY)(name, f"{where}'s names")
        text(most=_VALUE)(one, f"{where}.{name[:_KEY]}")
    return value


described(_metadata, type="object", additionalProperties=text(most=_VALUE), maxProperties=_METADATA)


def _echoed(value: Any, where: str) -> Any:
    """A text that the response repeats, and that has no other effect."""
    return unread(text()(value, where), where)


described(_echoed, type="string")

# input

_text = record({"text": text()}, required=("text",))
_PARTS: dict[str, Check] = {
    "input_text": _text,
    "output_text": _text,
    "text": _text,
    "refusal": record({"refusal": text()}, required=("refusal",)),
    "input_image": record(
        {"image_url": image_url, "detail": unread, "file_id": refused("Send the image as image_url.")},
        required=("image_url",),
    ),
    "input_audio": record(
        {"input_audio": record({"data": text(), "format": text()}, required=("data",))}, ("input_audio",)
    ),
    "input_file": refused("Send the file's text as input_text."),
}
_content = either(
    "a string or a list of parts", (str, text()), (list, array(by_type(_PARTS, "kind of content")))
)
_said = {"id": text(), "status": text()}
_reasoning = array(record({"text": text()}, required=("text",)))
_ITEMS: dict[str, Check] = {
    "message": record(
        {**_said, "role": one_of("user", "assistant", "system", "developer"), "content": _content},
        required=("role", "content"),
    ),
    "function_call": record(
        {**_said, "call_id": text(least=1), "name": text(least=1), "arguments": arguments},
        required=("call_id", "name", "arguments"),
    ),
    "function_call_output": record(
        {**_said, "call_id": text(least=1), "output": _content}, required=("call_id", "output")
    ),
    "reasoning": record({**_said, "summary": _reasoning, "content": _reasoning}),
    "item_reference": record({"id": text(least=1)}, required=("id",)),
}
_typed = by_type(_ITEMS, "kind of item", default="message")


def _item(value: Any, where: str) -> Any:
    if isinstance(value, dict) and value.get("type") is None and "role" not in value and "id" in value:
        return _ITEMS["item_reference"]({**value, "type": "item_reference"}, where)
    return _typed(value, where)


described(_item, anyOf=[_typed, record({"id": text(least=1)}, required=("id",))])


# tools

_function = record(
    {"name": text(least=1, most=256), "description": text(), "parameters": json_schema, "strict": flag},
    required=("name",),
)


def _tool(value: Any, where: str) -> Any:
    """Tools of OpenAI's own service pass: they are not offered to the model, and reported as ignored."""
    if not isinstance(any_object(value, where).get("type"), str):
        raise wrong_type(f"{where}.type", "a string", value.get("type"))
    return _function(value, where) if value["type"] == "function" else value


described(_tool, type="object", properties={"type": text()}, required=["type"])


_allowed = record(
    {"mode": one_of("auto", "required"), "tools": array(any_object, least=1)}, required=("tools",)
)
_choice = by_type(
    {"function": record({"name": text(least=1)}, required=("name",)), "allowed_tools": _allowed},
    "choice of a tool",
)
_format = by_type(
    {
        "text": any_object,
        "json_object": any_object,
        "json_schema": record(
            {"name": text(), "schema": json_schema, "strict": flag, "description": unread},
            required=("name", "schema"),
        ),
    },
    "text format",
)


def functions_of(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The tools that a model can be offered, with those alone that `tool_choice` allows."""
    functions = [one for one in fields.get("tools") or () if one["type"] == "function"]
    choice = fields.get("tool_choice")
    if not isinstance(choice, dict) or choice["type"] != "allowed_tools":
        return functions
    allowed = {one.get("name") for one in choice["tools"]}
    return [one for one in functions if one["name"] in allowed]


def _together(fields: dict[str, Any]) -> None:
    choice: Any = fields.get("tool_choice")
    functions = functions_of(fields)
    asked = choice["type"] if isinstance(choice, dict) else choice
    if asked in ("required", "allowed_tools") and not functions:
        raise Wrong("tool_choice", "tool_choice requires a tool, but tools has no function that it allows.")
    if asked == "function" and not any(one["name"] == choice["name"] for one in functions):
        raise Wrong("tool_choice", "tool_choice names a function that is not among the tools.")
    if fields.get("background") and fields.get("store") is False:
        raise Wrong("store", "Background responses are always stored: leave out store, or set it to true.")


RESPONSES = Dialogue(
    {
        **{name: CHAT.fields[name] for name in PASSED_ON if name in CHAT.fields},
        "model": text(least=1),
        "input": either("a string or a list of items", (str, text()), (list, array(_item, least=1))),
        "instructions": text(),
        "keep_alive": keep_alive,
        "stream": flag,
        "store": flag,
        "background": flag,
        "previous_response_id": text(least=1),
        "max_output_tokens": count,
        "temperature": number(0, 2),
        "top_p": number(0, 1),
        "top_logprobs": whole(0, 20),
        "metadata": _metadata,
        "truncation": one_of("auto", "disabled"),
        "parallel_tool_calls": flag,
        "reasoning": record({"effort": text(least=1), "summary": one_of("auto", "concise", "detailed")}),
        "text": record({"format": _format, "verbosity": unread}),
        "tools": array(_tool),
        "tool_choice": either(
            "a word or an object", (str, one_of("none", "auto", "required")), (dict, _choice)
        ),
        "include": array(text()),
        "conversation": refused("Use previous_response_id."),
        "prompt": refused("Send the prompt's text as instructions and input."),
        "prompt_cache_key": _echoed,
        "safety_identifier": _echoed,
    },
    required=("input",),
    together=_together,
)
