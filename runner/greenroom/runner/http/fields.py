"""What requests may hold, field by field. What is wrong is refused before an engine is loaded, with one
sentence whatever the engine.

A check takes a value and the path where it stands. It returns the value, or a copy of it without the nulls
that stand for "left out"; it raises Wrong. Sentences name paths and what was expected, never the value: a
value is the client's own text and may be long or secret. Fields that are not named pass as they are, and are
noted, as are those that nothing reads: `noting`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from greenroom.runner.http import pictures, schema_checks
from greenroom.runner.http.wrong_fields import Wrong, missing, not_fetched, wrong_type

Check = Callable[[Any, str], Any]

_INT32 = 2**31 - 1


def described(check: Check, **schema: Any) -> Check:
    """Note what a check accepts, for the API's description: a JSON schema, whose parts may be checks."""
    noted: Any = check
    noted.schema = schema
    return check


@dataclass
class Unused:
    """Paths of fields that have no effect, where `[]` stands for any index; in the order they came in."""

    unread: dict[str, None] = field(default_factory=dict)
    """Fields that are known, and that nothing here reads."""
    unknown: dict[str, None] = field(default_factory=dict)
    """Fields inside of others that no check knows: an engine may, but a translation does not pass them on."""


_unused: ContextVar[Unused | None] = ContextVar("unused", default=None)
_INDEX = re.compile(r"\[\d+\]")


@contextmanager
def noting() -> Iterator[Unused]:
    """Collect what the checks inside find to be unused."""
    found = Unused()
    token = _unused.set(found)
    try:
        yield found
    finally:
        _unused.reset(token)


@partial(described, description="No effect. The header X-Greenroom-Ignored lists it.")
def unread(value: Any, where: str) -> Any:
    """A field that has no effect here, whatever it holds: the client gets a list of them."""
    if (found := _unused.get()) is not None:
        found.unread[_INDEX.sub("[]", where)] = None
    return value


def refused(instead: str) -> Check:
    def check(_: Any, where: str) -> Any:
        raise Wrong(where, f"{where} is not supported. {instead}", "unsupported_parameter")

    return described(check, type="null", description=f"Not supported. {instead}")


def text(least: int = 0, most: int | None = None) -> Check:
    def check(value: Any, where: str) -> Any:
        if not isinstance(value, str):
            raise wrong_type(where, "a string", value)
        if len(value) < least:
            raise Wrong(where, f"{where} must not be empty.")
        if most is not None and len(value) > most:
            raise Wrong(where, f"{where} has {len(value)} characters; the limit is {most}.")
        return value

    longest = {} if most is None else {"maxLength": most}
    return described(check, type="string", **({"minLength": least} if least else {}), **longest)


@partial(described, type="boolean")
def flag(value: Any, where: str) -> Any:
    if not isinstance(value, bool):
        raise wrong_type(where, "true or false", value)
    return value


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    def check(value: Any, where: str) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(where, "a number", value)
        if not math.isfinite(value) or not least <= value <= most:
            raise Wrong(where, f"{where} must be {_range(least, most)}.")
        return value

    return described(check, type="number", **_bounds(least, most))


def whole(least: int = -(2**63), most: int = 2**63 - 1) -> Check:
    """A whole number in a range; `5.0` is one, and passed on as 5."""

    def check(value: Any, where: str) -> Any:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(where, "a whole number", value)
        if not least <= value <= most:
            raise Wrong(where, f"{where} must be {_range(least, most)}.")
        return value

    return described(check, type="integer", **_bounds(least, most))


def _bounds(least: float, most: float) -> dict[str, Any]:
    bounds = {"minimum": least, "maximum": most}
    return {name: bound for name, bound in bounds.items() if math.isfinite(bound)}


count = whole(1, _INT32)


def one_of(*words: str) -> Check:
    def check(value: Any, where: str) -> Any:
        if not isinstance(value, str):
            raise wrong_type(where, "a string", value)
        if value not in words:
            raise Wrong(where, f"{where} must be one of {', '.join(words)}.")
        return value

    return described(check, type="string", enum=words)


@partial(described, type="object")
def any_object(value: Any, where: str) -> Any:
    """An object whose content is not ours to judge; nulls in it stay."""
    if not isinstance(value, dict):
        raise wrong_type(where, "an object", value)
    return value


@partial(described, type="object")
def json_schema(value: Any, where: str) -> Any:
    if fault := schema_checks.fault_of_schema(any_object(value, where)):
        raise Wrong(where, f"{where} {fault}.", "invalid_schema")
    return value


@partial(described, type="string")
def grammar(value: Any, where: str) -> Any:
    if fault := schema_checks.fault_of_grammar(text()(value, where)):
        raise Wrong(where, f"{where} cannot be used: {fault}.", "invalid_grammar")
    return value


@partial(
    described,
    type=["string", "number", "null"],
    description="How long the model stays loaded: `30m`, seconds, or negative for indefinitely.",
)
def keep_alive(value: Any, _: str) -> Any:
    """Anything: it is checked where it is read, for every family."""
    return value


def array(of: Check, least: int = 0, most: int | None = None) -> Check:
    """A list of so many items, each of which passes a check."""

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise wrong_type(where, "a list", value)
        if len(value) < least:
            raise Wrong(where, f"{where} must not be empty.")
        if most is not None and len(value) > most:
            raise Wrong(where, f"{where} has {len(value)} items; the limit is {most}.")
        cleaned: list[Any] | None = None
        for index, item in enumerate(value):
            clean = of(item, f"{where}[{index}]")
            if clean is not item:
                cleaned = list(value) if cleaned is None else cleaned
                cleaned[index] = clean
        return value if cleaned is None else cleaned

    sizes = {"minItems": least or None, "maxItems": most}
    bounds = {name: size for name, size in sizes.items() if size is not None}
    return described(check, type="array", items=of, **bounds)


def record(
    fields: Mapping[str, Check],
    required: Collection[str] = (),
    then: Callable[[dict[str, Any], str], None] | None = None,
    nulls: Collection[str] = (),
) -> Check:
    """An object with these fields. Others pass as they are; null is the same as leaving a field out.

    `then` looks at the fields together; `nulls` are fields whose null means something, and stays.
    """

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise wrong_type(where, "an object", value)
        value = cleaned(value, fields, f"{where}." if where else "", nulls)
        for name in required:
            if name not in value:
                raise missing(f"{where}.{name}" if where else name)
        if then is not None:
            then(value, where)
        return value

    return described(check, type="object", properties=fields, required=tuple(required))


def cleaned(
    value: dict[str, Any], fields: Mapping[str, Check], prefix: str = "", nulls: Collection[str] = ()
) -> dict[str, Any]:
    """The fields of an object, checked and without nulls; the same object if nothing had to change."""
    result = value
    for name, item in value.items():
        if item is None:
            if name in nulls:
                continue
            result = dict(value) if result is value else result
            del result[name]
        elif (of := fields.get(name)) is None:
            # `by_type` has looked at the type.
            if prefix and name != "type" and (found := _unused.get()) is not None:
                found.unknown[_INDEX.sub("[]", f"{prefix}{name}")] = None
        elif (clean := of(item, f"{prefix}{name}")) is not item:
            result = dict(value) if result is value else result
            result[name] = clean
    return result


def by_type(kinds: Mapping[str, Check], what: str, *, default: str = "") -> Check:
    """An object whose `type` says which check is its own; without a `default` it must have one."""

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise wrong_type(where, "an object", value)
        kind = value.get("type")
        if kind is None:
            if not default:
                raise missing(f"{where}.type")
            kind = default
        if not isinstance(kind, str):
            raise wrong_type(f"{where}.type", "a string", kind)
        if kind not in kinds:
            known = ", ".join(kinds)
            raise Wrong(
                f"{where}.type",
                f"{where}.type is not a {what} that this server supports; use one of {known}.",
            )
        return kinds[kind](value, where)

    return described(check, kinds=kinds, default=default)


def either(expected: str, *ways: tuple[type, Check]) -> Check:
    """One of several types, each with a check of its own."""

    def check(value: Any, where: str) -> Any:
        for kind, way in ways:
            if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
                return way(value, where)
        raise wrong_type(where, expected, value)

    return described(check, anyOf=[way for _, way in ways])


def _range(least: float, most: float) -> str:
    if abs(least) >= _INT32 and most >= _INT32:
        return "a number that fits into 64 bits"
    if math.isinf(most):
        return f"at least {least:g}"
    return f"from {least:.15g} to {most:.15g}"


@dataclass(frozen=True)
class Dialogue:
    """The fields of one family's requests."""

    fields: Mapping[str, Check]
    required: tuple[str, ...] = ()
    together: Callable[[dict[str, Any]], None] = field(default=lambda _: None)
    """Looks at the fields together. Raises Wrong."""


TOOL_NAME = 256
"""Characters of a tool's name; OpenAI takes 64, and tool servers make longer ones."""


# what messages are made of

_said_no = record({"refusal": text()}, required=("refusal",))


@partial(described, anyOf=[_said_no])
def _refusal(value: Any, where: str) -> Any:
    """What an assistant refused in: engines know no such part, and get its text."""
    return {"type": "text", "text": _said_no(value, where)["refusal"]}


_sound = record({"data": text(), "format": text()}, required=("data",))
_CACHED = {"prompt_cache_breakpoint": unread}


@partial(described, type="string", pattern="^[Dd][Aa][Tt][Aa]:")
def data_url(value: Any, where: str) -> Any:
    """A URL that is the data itself: engines would open this machine's files, or fetch from its network."""
    text(least=1)(value, where)
    if value[:8].lower().startswith(("http://", "https://")):
        raise not_fetched(where)
    if value[:5].lower() != "data:":
        raise Wrong(where, f"{where} must be a data: URL.")
    return value


@partial(described, type="string", contentEncoding="base64", minLength=1)
def base64_image(value: Any, where: str) -> Any:
    """An image in base64, without line breaks."""
    text(least=1)(value, where)
    if value[:8].lower().startswith(("http://", "https://")):
        raise not_fetched(where)
    try:
        return pictures.checked(value)
    except ValueError:
        raise Wrong(where, f"{where} must be a PNG, JPEG, GIF, BMP or WebP image in base64.") from None


@partial(described, type="string", pattern="^[Dd][Aa][Tt][Aa]:[Ii][Mm][Aa][Gg][Ee]/")
def image_url(value: Any, where: str) -> Any:
    """A data URL with an image in base64."""
    head, comma, data = data_url(value, where).partition(",")
    kind = head.lower()
    if not comma or not kind.startswith("data:image/") or not kind.endswith(";base64"):
        raise Wrong(where, f"{where} must be a data URL with an image in base64: data:image/png;base64,…")
    clean = base64_image(data, where)
    return value if clean is data and kind == head else f"{kind},{clean}"


def _link(name: str, url: Check) -> Check:
    """A part with a URL, or with an object that has one; the engine gets an object."""

    def alone(value: Any, where: str) -> Any:
        return {"url": url(value, where)}

    inner = record({"url": url, "detail": unread}, required=("url",))
    linked = either("a URL or an object with one", (str, described(alone, anyOf=[url])), (dict, inner))
    return record({name: linked, **_CACHED}, required=(name,))


_PARTS = {
    "text": record({"text": text(), **_CACHED}, required=("text",)),
    "image_url": _link("image_url", image_url),
    "input_audio": record({"input_audio": _sound, **_CACHED}, required=("input_audio",)),
    "audio_url": _link("audio_url", data_url),
    "video_url": _link("video_url", data_url),
    "refusal": _refusal,
}
_content = either(
    "a string or a list of parts", (str, text()), (list, array(by_type(_PARTS, "kind of content"), least=1))
)


@partial(described, type=["string", "object"])
def arguments(value: Any, where: str) -> Any:
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


_function_call = record({"name": text(least=1), "arguments": arguments}, required=("name",))
_tool_call = by_type(
    {"function": record({"id": text(), "function": _function_call}, required=("function",))},
    "tool call",
    default="function",
)


def _message(value: dict[str, Any], where: str) -> None:
    if value.get("content") is not None:
        return
    if value["role"] != "assistant":
        raise missing(f"{where}.content")
    if not any(value.get(name) for name in ("tool_calls", "reasoning_content")):
        raise Wrong(
            f"{where}.content",
            f"{where} must have content or tool_calls: it is an assistant's message.",
            "missing_required_parameter",
        )


_checked_message = record(
    {
        "role": one_of("system", "developer", "user", "assistant", "tool", "function"),
        "content": _content,
        "name": text(),
        "tool_call_id": text(),
        "tool_calls": array(_tool_call),
        "function_call": refused("Use tool_calls."),
        "refusal": unread,
        "reasoning_content": text(),
        "audio": unread,
    },
    required=("role",),
    then=_message,
    # Beside tool calls it says that the assistant said nothing; some templates look for it.
    nulls=("content",),
)


@partial(described, anyOf=[_checked_message])
def _chat_message(value: Any, where: str) -> Any:
    """A message; what an assistant refused in is its content, where it has no other."""
    if isinstance(value, dict) and value.get("content") is None and isinstance(value.get("refusal"), str):
        value = {name: one for name, one in value.items() if name != "refusal"} | {
            "content": value["refusal"]
        }
    return _checked_message(value, where)


# what they ask for

_function = record(
    {"name": text(1, TOOL_NAME), "description": text(), "parameters": json_schema, "strict": flag},
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
_schema = record({"name": text(), "schema": json_schema, "strict": flag, "description": unread})
response_format = by_type(
    {
        "text": any_object,
        "json_object": record({"schema": json_schema}),
        "json_schema": record({"json_schema": _schema}, required=("json_schema",)),
    },
    "response format",
)


@partial(
    described, type="object", additionalProperties=number(-100, 100), propertyNames={"pattern": "^-?[0-9]+$"}
)
def _bias(value: Any, where: str) -> Any:
    if len(any_object(value, where)) > 4096:
        raise Wrong(where, f"{where} has {len(value)} tokens; the limit is 4096.")
    weigh = number(-100, 100)
    for name, weight in value.items():
        if not name.removeprefix("-").isdecimal():
            raise Wrong(where, f"{where} must map token ids to numbers.")
        weigh(weight, f"{where}.{name[:20]}")
    return value


SAMPLING: dict[str, Check] = {
    "model": text(least=1),
    "stream": flag,
    "stream_options": record({"include_usage": flag, "include_obfuscation": unread}),
    "max_tokens": count,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": whole(-1, 2**31 - 1),
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "n": whole(1, 128),
    "seed": whole(),
    "stop": either("a string or a list of strings", (str, text(1)), (list, array(text(1), most=64))),
    "logit_bias": _bias,
    "user": text(),
    "id_slot": whole(),
    "cache_prompt": flag,
    "n_probs": whole(0, 100),
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
    for name, instead in (("functions", "tools"), ("function_call", "tool_choice")):
        if fields.get(name):
            raise Wrong(name, f"{name} is not supported; use {instead}.", "unsupported_parameter")


_SERVICE = (
    *("audio", "metadata", "moderation", "prediction", "prompt_cache_key", "prompt_cache_options"),
    *("prompt_cache_retention", "safety_identifier", "service_tier", "store", "verbosity"),
    "web_search_options",
)
"""What only OpenAI's own service does."""
CHAT = Dialogue(
    {
        **SAMPLING,
        **dict.fromkeys(_SERVICE, unread),
        "messages": array(_chat_message, least=1),
        "max_completion_tokens": count,
        "logprobs": flag,
        "top_logprobs": whole(0, 20),
        "tools": array(_tool),
        "tool_choice": either(
            "a word or an object", (str, one_of("none", "auto", "required")), (dict, _named_tool)
        ),
        "parallel_tool_calls": flag,
        "response_format": response_format,
        "modalities": array(text()),
        "functions": array(json_schema),
        "function_call": either("a word or an object", (str, text()), (dict, any_object)),
        "reasoning_effort": text(),
        "chat_template_kwargs": any_object,
        "grammar": grammar,
        "json_schema": json_schema,
    },
    required=("messages",),
    together=_chat_together,
)
