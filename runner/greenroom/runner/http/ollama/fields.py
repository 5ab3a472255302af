"""What the requests of Ollama's clients may hold, checked as in `fields`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greenroom.runner.http.fields import (
    CHAT,
    Check,
    Dialogue,
    any_object,
    array,
    base64_image,
    count,
    described,
    either,
    flag,
    image_url,
    json_schema,
    keep_alive,
    one_of,
    record,
    text,
    whole,
)
from greenroom.runner.http.sampling import PARAMETERS
from greenroom.runner.http.wrong_fields import Wrong


def _image(value: Any, where: str) -> Any:
    """In base64, as Ollama has it, or a data URL."""
    is_url = isinstance(value, str) and value[:5].lower() == "data:"
    return (image_url if is_url else base64_image)(value, where)


described(_image, type="string", minLength=1)


def _format(value: Any, where: str) -> Any:
    if value in ("", "json"):
        return value
    if isinstance(value, str):
        raise Wrong(where, f'{where} must be "json" or a JSON schema.')
    return json_schema(value, where)


described(_format, anyOf=[{"enum": ["", "json"]}, {"type": "object"}])


def _tools(value: Any, where: str) -> Any:
    """As OpenAI has them, but for `type`, which may be left out."""
    if isinstance(value, list):
        value = [
            {**one, "type": "function"} if isinstance(one, dict) and not one.get("type") else one
            for one in value
        ]
    return CHAT.fields["tools"](value, where)


described(_tools, type="array", items={"type": "object"})


_call = record(
    {
        "id": text(),
        "function": record(
            {"name": text(least=1), "arguments": any_object, "index": whole()}, required=("name",)
        ),
    },
    required=("function",),
)
_message = record(
    {
        "role": one_of("system", "user", "assistant", "tool"),
        "content": text(),
        "thinking": text(),
        "images": array(_image),
        "tool_calls": array(_call),
        "tool_name": text(),
        "tool_call_id": text(),
    },
    required=("role",),
)

_ALL: Mapping[str, Check] = {
    "model": text(least=1),
    "stream": flag,
    # Checked where it is used, for every family.
    "keep_alive": keep_alive,
    "options": record(PARAMETERS),
}
_GENERATING: Mapping[str, Check] = {
    **_ALL,
    "format": _format,
    "think": either("true, false or a level", (bool, flag), (str, one_of("low", "medium", "high", "max"))),
    "logprobs": flag,
    "top_logprobs": whole(0, 20),
}

OLLAMA_CHAT = Dialogue({**_GENERATING, "messages": array(_message), "tools": _tools}, required=("messages",))


def _refused(fields: dict[str, Any]) -> None:
    if fields.get("template"):
        raise Wrong(
            "template",
            "template is not supported: the model's own chat template is used. To do without it, send "
            "the whole prompt with raw: true.",
            "unsupported_parameter",
        )
    if fields.get("suffix"):
        raise Wrong(
            "suffix", "suffix is not supported: this model does not support insert.", "unsupported_parameter"
        )
    if fields.get("raw") and fields.get("images"):
        needed = "images need the model's chat template; leave raw out."
        raise Wrong("images", needed, "unsupported_parameter")


GENERATE = Dialogue(
    {
        **_GENERATING,
        "prompt": text(),
        "system": text(),
        "images": array(_image),
        "raw": flag,
        "template": text(),
        "suffix": text(),
    },
    required=("prompt",),
    together=_refused,
)

EMBED = Dialogue(
    {
        **_ALL,
        "input": either(
            "a string or a list of strings", (str, text()), (list, array(text(least=1), most=10_000))
        ),
        "dimensions": count,
        "truncate": flag,
    },
    required=("input",),
)
EMBEDDINGS = Dialogue({**_ALL, "prompt": text(), "truncate": flag}, required=("prompt",))
