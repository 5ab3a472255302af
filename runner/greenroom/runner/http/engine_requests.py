"""A request on its way to an engine: what routing needs, whether it is right, and what the engine is sent.

A body is checked against the fields of its family, then against what the model and the backend cannot do,
before anything is loaded. The engine gets it byte for byte, unless something in it had to change.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.limits import CONTEXT, Name
from greenroom.actors.scheduler.backend_choice import choose
from greenroom.actors.scheduler.ledger import Capacity, context_reckoned, reservation_for
from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import Medium, Mode, Model
from greenroom.runner.backends.base import Dialect
from greenroom.runner.daemon import Greenroom
from greenroom.runner.errors import JobFailed
from greenroom.runner.http.bodies import NOT_UNDERSTOOD, invalid, not_understood
from greenroom.runner.http.errors import Family, HttpRefusal
from greenroom.runner.http.fields import Dialogue, cleaned, noting
from greenroom.runner.http.go_duration import keep_alive_of
from greenroom.runner.http.other_uses import refuse_other_uses
from greenroom.runner.http.pictures import PIXELS, pixels_of
from greenroom.runner.http.tool_prompt import ToolPrompt
from greenroom.runner.http.translation import Translation
from greenroom.runner.http.wrong_fields import Wrong, missing
from greenroom.runner.models.description import template_text
from greenroom.runner.units import format_size

TOO_LONG = "context_length_exceeded"
_FIELDS = 1000
"""Fields of a body: llama.cpp takes minutes to read a hundred thousand."""
_ASIDE = 128 * 1024
"""Bytes of a body from which on it is looked at in a thread: other streams go on meanwhile."""

_value = msgspec.json.Decoder()
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

_REMEMBERED = 1000
_MEDIA: Mapping[str, tuple[Medium, str]] = {
    "image_url": ("image", "images"),
    "video_url": ("image", "videos"),
    "input_audio": ("audio", "sound"),
    "audio_url": ("audio", "sound"),
}
"""Kinds of parts that are no text: what a model must read for them, and what they are."""
_TEMPLATES = ("--chat-template", "--chat-template-file")
_LONGEST_TOKEN = 256
"""Bytes of text, without spaces, that one token stands for at the very most: tokenizers know long runs of
one character, of 128 at most in those that are published."""


# what it asks for


class Routing(msgspec.Struct, frozen=True, gc=False):
    """What routing needs of an inference request; all the rest is its family's, or the engine's."""

    model: Name = ""
    keep_alive: str | float | None = None
    """How long the model is to stay: a duration, or a number of seconds; negative means indefinitely."""
    num_ctx: Any = None
    """Tokens that the request needs at least; not checked."""


_decode_routing = msgspec.json.Decoder(Routing).decode


def routing_of(body: bytes) -> Routing:
    """What routing needs. Raises HttpRefusal: 400 for broken JSON or a missing model."""
    try:
        routing = _decode_routing(body or b"{}")
    except NOT_UNDERSTOOD as error:
        if not str(error).endswith("got `null` - at `$.model`"):
            raise not_understood(error) from None
        routing = Routing()
    if not routing.model.strip():
        raise HttpRefusal(
            400,
            "model_required",
            'model is required: name one in the body, such as {"model": "smollm2"}.',
            param="model",
        )
    return routing


def wished_keep_alive(routing: Routing) -> float | None:
    """Seconds that the model is to stay after the request; None without a wish. Raises HttpRefusal: 400."""
    if routing.keep_alive is None:
        return None
    try:
        return keep_alive_of(routing.keep_alive)
    except ValueError as error:
        raise HttpRefusal(400, "invalid_request", f"keep_alive: {error}.", param="keep_alive") from None


def wished_context(routing: Routing, model: Model) -> int:
    """Tokens that the engine's context is to have at least; 0 without a wish. Raises HttpRefusal: 400."""
    wished = routing.num_ctx
    if wished is None:
        return 0
    if isinstance(wished, bool) or not isinstance(wished, int) or not 0 <= wished <= CONTEXT:
        raise invalid(f"num_ctx must be a whole number from 0 to {CONTEXT}", param="num_ctx")
    return min(wished, model.context_length or wished)


# whether it is right


@dataclass(frozen=True)
class Kind:
    mode: Mode
    path: str
    """Where the engine has it."""
    dialogue: Dialogue
    """What its requests may hold."""
    family: Family = "openai"
    """The form of its errors."""
    param: str = "messages"
    """The field with the prompt."""
    end: bytes = b""
    """What begins the last event of its streams, so that one which ends without was cut off; empty where it
    has no streams."""
    answers: str = "choices"
    """A field that its answers have."""
    translate: Callable[[Mapping[str, Any]], Translation | None] | None = None
    """Makes a chat completion of its checked fields; None where engines have this form themselves."""


class Checked(NamedTuple):
    body: bytes
    fields: dict[str, Any]
    """What of it is known to its family, decoded."""
    unread: tuple[str, ...] = ()
    """Those of them that no engine reads."""
    unknown: tuple[str, ...] = ()
    """Its other fields, also those inside of others."""


async def check(body: bytes, dialogue: Dialogue) -> Checked:
    """Check a body. Raises HttpRefusal: 400 with the field that is wrong."""
    if len(body) > _ASIDE:
        return await asyncio.to_thread(check_now, body, dialogue)
    return check_now(body, dialogue)


def check_now(body: bytes, dialogue: Dialogue) -> Checked:
    """The same at once."""
    try:
        # Engines answer text in another encoding each in a way of its own, and some not at all.
        body.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8 at byte {error.start}") from None
    try:
        given = _fields.decode(body)
        if len(given) > _FIELDS:
            raise invalid(f"the body has {len(given)} fields; the limit is {_FIELDS}")
        absent = [name for name, raw in given.items() if _stands_for_nothing(name, bytes(raw))]
        known = {
            name: _value.decode(raw)
            for name, raw in given.items()
            if name in dialogue.fields and name not in absent
        }
    except NOT_UNDERSTOOD as error:
        deep = isinstance(error, RecursionError)
        raise invalid("JSON is nested too deeply" if deep else str(error)) from None
    try:
        with noting() as unused:
            fields = cleaned(known, dialogue.fields)
        for name in dialogue.required:
            if name not in fields:
                raise missing(name)
        dialogue.together(fields)
    except Wrong as wrong:
        raise HttpRefusal(400, wrong.code, str(wrong), param=wrong.where) from None
    except RecursionError:
        raise invalid("JSON is nested too deeply") from None
    outer = (name for name in given if name not in dialogue.fields and name not in absent)
    unread, unknown = tuple(unused.unread), (*outer, *unused.unknown)
    if fields is known and not absent:
        return Checked(body, fields, unread, unknown)
    passed: dict[str, Any] = {name: raw for name, raw in given.items() if name not in absent}
    passed |= {name: value for name, value in fields.items() if value is not known[name]}
    return Checked(msgspec.json.encode(passed), fields, unread, unknown)


def _stands_for_nothing(name: str, raw: bytes) -> bool:
    """A field that might as well be left out.

    -1 tokens means no limit, in the words of LM Studio; an empty text would stop an answer at once.
    """
    if name == "stop":
        return raw in (b"null", b'""', b'[""]')
    return raw == b"null" or (raw == b"-1" and name in ("max_tokens", "max_completion_tokens"))


# whether it can be done


@dataclass(frozen=True)
class RequestTarget:
    """What was asked, for the sentences of refusals."""

    backend: str
    model: str
    """As the client wrote it."""
    param: str = "messages"
    """The field that holds the prompt."""


class Talk(NamedTuple):
    """What a model's chat template has a place for."""

    tools: bool
    instructions: bool


class Abilities:
    """Refuses requests that no engine could serve. One for a front door."""

    def __init__(self, greenroom: Greenroom) -> None:
        self._greenroom = greenroom
        self._talks: dict[str, Talk] = {}
        self._contexts: dict[tuple[str, Mode], tuple[Model, Mapping[str, ModelConfigState], int]] = {}
        """What was reckoned for a model as configured; see `_context_of`."""

    async def look(
        self,
        model: Model,
        mode: Mode,
        backend: str,
        fields: Mapping[str, Any],
        asked: RequestTarget,
        context_size: int = 0,
    ) -> None:
        """Refuse what no engine for this model could do. Raises HttpRefusal: 400, 422 or 507.

        `backend`, unless empty, is binding; `context_size` is what the request wants at least.
        """
        _refuse_what_it_cannot_read(model, fields, asked)
        configs = self._greenroom.configs()
        if mode != "embedding" and model.made_for not in (None, mode):
            flags = _config(configs, model, mode).flags or ()
            refuse_other_uses(model, mode, asked.model, flags, pools_by_header=True)
        if mode != "reranking":
            key = model.id, mode
            known = self._contexts.get(key)
            if known is None or known[0] is not model or known[1] is not configs:
                if len(self._contexts) >= _REMEMBERED:
                    self._contexts.clear()
                known = self._contexts[key] = model, configs, _context_of(model, mode, configs)
            if context_size > known[2] > 0:
                await self._see_that_it_fits(model, mode, backend, context_size)
            _check_length(known[2] and max(known[2], context_size), fields, asked)
        dialects = self._greenroom.backends
        if mode != "embedding" and not any(
            cannot.asked(fields) for one in dialects.values() for cannot in one.dialect.cannot
        ):
            return
        name = self.serving(model, mode, backend)
        if name is None:
            return  # the scheduler will say why
        dialect = dialects[name].dialect
        refuse_what_it_cannot(name, dialect, fields)
        if mode == "embedding":
            flags = _config(configs, model, mode).flags or ()
            refuse_other_uses(model, mode, asked.model, flags, pools_by_header=dialect.pools_by_header)

    async def _see_that_it_fits(self, model: Model, mode: Mode, backend: str, context_size: int) -> None:
        """Raise HttpRefusal for a context that could never be loaded: nothing is to end for it."""
        readers = [
            one
            for one in self._greenroom.facts
            if model.format in one.formats and mode in one.modes and backend in ("", one.name)
        ]
        needed = budget = 0
        for one in readers:
            capacity = Capacity(slots=1 if one.slots else 0, shares_cache=one.shares_cache)
            needed = reservation_for(model, context_size, one.overhead, capacity).total
            # In a thread: limits of the system are read from files.
            budget = await asyncio.to_thread(self._greenroom.memory.budget_for, one.name)
            if needed <= budget:
                return
        if readers:
            raise HttpRefusal(
                507,
                "does_not_fit",
                f"A context of {context_size} tokens needs {format_size(needed)} of memory; engines may use "
                f"{format_size(budget)} in total.",
                advice="Request a smaller context.",
                numbers={"needed": float(needed), "budget": float(budget)},
            )

    def serving(self, model: Model, mode: Mode, backend: str) -> str | None:
        """The backend that would serve a model; None if none can without more ado."""
        greenroom = self._greenroom
        statuses = {one.name: one for one in greenroom.statuses()}
        choice = choose(model, mode, backend, greenroom.settings.install_policy, greenroom.facts, statuses)
        return None if isinstance(choice, Refusal) else choice.backend

    async def tool_prompt(self, model: Model, chat: Mapping[str, Any]) -> ToolPrompt | None:
        """What stands in for a chat template without tools; None where none is needed."""
        if not uses_tools(chat):
            return None
        flags = _config(self._greenroom.configs(), model, "completion").flags or ()
        if any(flag.partition("=")[0] in _TEMPLATES for flag in flags):
            return None  # the user's own, which is not known here
        talk = self._talks.get(model.id)
        if talk is None:
            talk = await asyncio.to_thread(self._read, model)
            if len(self._talks) < _REMEMBERED:
                self._talks[model.id] = talk
        return None if talk.tools else ToolPrompt(chat, instructs=talk.instructions)

    def _read(self, model: Model) -> Talk:
        try:
            template = template_text(self._greenroom.store, model.id)
        except JobFailed:
            return Talk(tools=True, instructions=True)  # loading it will say what is wrong
        return Talk(tools="tools" in template, instructions="system" in template)


def _config(configs: Mapping[str, ModelConfigState], model: Model, mode: Mode) -> ModelConfigState:
    return configs.get(config_key(model.id, mode), ModelConfigState())


def _context_of(model: Model, mode: Mode, configs: Mapping[str, ModelConfigState]) -> int:
    """Tokens that a prompt may have; 0 where that is not known before the model is loaded."""
    config = _config(configs, model, mode)
    size = model.context_size if config.context_size is None else config.context_size
    # llama.cpp and mlx are given a bound where nothing is configured; vLLM finds its own.
    bounded = model.format in ("gguf", "safetensors-mlx")
    given = context_reckoned(size, model.context_length) if bounded else size
    flagged = {"-c", "--ctx-size", "--max-model-len"}.intersection(
        flag.partition("=")[0] for flag in config.flags or ()
    )
    return 0 if flagged else max(0, given if given > 0 else model.context_length)


def _check_length(context: int, fields: Mapping[str, Any], asked: RequestTarget) -> None:
    if context:
        tokens, exactly = _least_tokens(fields)
        if tokens > context:
            raise too_long(asked, tokens, context, at_least=not exactly)


def refuse_what_it_cannot(backend: str, dialect: Dialect, fields: Mapping[str, Any]) -> None:
    """Refuse what a backend would ignore, or die of. Raises HttpRefusal: 400."""
    for cannot in dialect.cannot:
        if cannot.asked(fields):
            raise HttpRefusal(
                400,
                cannot.code,
                f"{cannot.param}: {backend} cannot do this. {cannot.instead}".strip(),
                param=cannot.param,
            )


def _refuse_what_it_cannot_read(model: Model, fields: Mapping[str, Any], asked: RequestTarget) -> None:
    """Refuse images and sound for a model that reads none, and images that are too large together.

    Raises HttpRefusal: 400.
    """
    if (reads := model.reads) is None:
        return  # the engine will say so
    pixels = 0
    for part, where in _media_in(fields):
        medium, named = _MEDIA[part["type"]]
        if medium not in reads:
            raise HttpRefusal(
                400,
                "unsupported_input",
                f'The model "{asked.model}" cannot read {named}: it has no projector.',
                advice="Send text, or use a model with a projector.",
                param=where,
            )
        if part["type"] == "image_url":
            pixels += pixels_of(part["image_url"]["url"].partition(",")[2])
            if pixels > PIXELS:
                raise HttpRefusal(
                    400,
                    "image_too_large",
                    f"The images in this request have more than {PIXELS // 10**6} million pixels in total.",
                    advice="Send smaller images; models scale them down anyway.",
                    param=where,
                )


def uses_tools(chat: Mapping[str, Any]) -> bool:
    """Whether a chat offers tools, or tells of calls."""
    return bool(chat.get("tools")) or any(
        message.get("tool_calls") or message["role"] == "tool" for message in chat.get("messages") or ()
    )


def _media_in(fields: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Parts of a checked chat that are no text, and where they stand."""
    for number, message in enumerate(fields.get("messages") or ()):
        content = message.get("content")
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if part["type"] in _MEDIA:
                yield part, f"messages[{number}].content[{index}]"


def _least_tokens(fields: Mapping[str, Any]) -> tuple[int, bool]:
    """How many tokens the prompt has at least, and whether that is their number."""
    prompt = fields.get("prompt", fields.get("input"))
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    if isinstance(prompt, list) and isinstance(first, int):
        return len(prompt), True
    if isinstance(prompt, list) and isinstance(first, list):
        return max(map(len, prompt)), True
    if "input" in fields:
        return 0, False  # for an encoder a word of any length may be one token
    if isinstance(prompt, list):
        return max(map(_least, prompt), default=0), False
    if isinstance(prompt, str):
        return _least(prompt), False
    return sum(_least(text) for text in _texts(fields.get("messages") or ())), False


def _texts(messages: Sequence[Any]) -> Iterator[str]:
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        for part in content if isinstance(content, list) else ():
            if part["type"] == "text":
                yield part["text"]


def _least(text: str) -> int:
    if len(text) < _LONGEST_TOKEN:
        return 0
    return (len(text) - sum(map(text.count, " \t\r\n"))) // _LONGEST_TOKEN


def too_long(asked: RequestTarget, tokens: int, context: int, *, at_least: bool = False) -> HttpRefusal:
    """A prompt that does not fit into the context."""
    numbers = {"n_prompt_tokens": float(tokens), "n_ctx": float(context)}
    has = f"has {'at least ' if at_least else ''}{tokens} tokens" if tokens else "is too long"
    most = f"at most {context}" if context else "fewer"
    return HttpRefusal(
        400,
        TOO_LONG,
        f'The prompt {has}, and "{asked.model}" accepts {most} here.',
        advice=f"Shorten it, or allow more: greenroom configure {asked.model} --context N",
        numbers={name: number for name, number in numbers.items() if number},
        param=asked.param,
    )


# what the engine is sent


def spoken_by(dialect: Dialect, model: Model) -> str | None:
    """What the engine calls the model, or None when it takes any name."""
    return dialect.spoken(model.id) if dialect.model_name else None


def translate(body: bytes, dialect: Dialect, name: str | None, ours: frozenset[str] = frozenset()) -> bytes:
    """The body as the engine may see it, without what is `ours`; `name` is what it calls the model."""
    dropped = dialect.dropped | ours if ours else dialect.dropped
    formed = bool(dialect.completion_schema) and b'"response_format"' in body
    if name is None and not dropped and not formed:
        return body
    fields = _fields.decode(body)
    if formed and "prompt" in fields and "response_format" in fields:
        schema = _schema_of(_value.decode(fields.pop("response_format")))
        if schema is not None:
            fields.setdefault(dialect.completion_schema, msgspec.Raw(msgspec.json.encode(schema)))
    for field in dropped:
        fields.pop(field, None)
    if name is not None:
        fields["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(fields)


_BLOCK = 2_048
"""Characters of a raw prompt that are one part, or tokens."""
_RENDERED = ("tools", "tool_choice", "chat_template_kwargs", "reasoning_effort")
"""Fields of a chat that its template may write before the first message."""
TAKES_SLOT = frozenset({"/v1/chat/completions", "/v1/completions", "/infill"})
"""Routes of engines whose requests are answered in a slot that can be named."""
Prompt = tuple[object, ...]


def parts_of(fields: Mapping[str, Any], path: str) -> Prompt:
    """A prompt in parts: what is the same up to some part reads the same up to there.

    Of a chat, what its template writes first and then each message; of a raw prompt, its whole blocks.
    """
    if path == "/v1/chat/completions":
        first = {name: fields[name] for name in _RENDERED if fields.get(name)}
        return (first, *(fields.get("messages") or ()))
    prompt = fields.get("prompt") if path == "/v1/completions" else None
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and isinstance(prompt[0], int)):
        return tuple(prompt[at : at + _BLOCK] for at in range(0, len(prompt) - _BLOCK + 1, _BLOCK))
    return ()


def with_slot(body: bytes, number: int | None, *, keeps: bool = True) -> bytes:
    """The body of a request that is to be answered in this slot, or in any; unless it `keeps`, without going
    on from what the slot has read.
    """
    first = (b"" if number is None else b'"id_slot":%d,' % number) + (
        b"" if keeps else b'"cache_prompt":false,'
    )
    at = body.index(b"{") + 1
    return body[:at] + first + body[at:] if first else body


def _schema_of(form: dict[str, Any]) -> Any:
    """The JSON schema of a checked response format; None where it asks for any text."""
    if form["type"] == "json_schema":
        return form["json_schema"].get("schema", {})
    return form.get("schema", {"type": "object"}) if form["type"] == "json_object" else None


def ignored_by(dialect: Dialect, fields: Mapping[str, Any], body: bytes) -> list[str]:
    """The fields that the engine does not get, or takes no notice of; the client gets a list of them."""
    dropped = sorted(dialect.dropped & _fields.decode(body).keys()) if dialect.dropped else []
    return [*dropped, *(one.param for one in dialect.ignores if one.asked(fields))]


class RequestIds:
    """Ids for requests: unique forever, since they stand in the journal as causes."""

    def __init__(self) -> None:
        self._stem = secrets.token_hex(4)
        self._count = itertools.count(1)

    def next(self) -> str:
        return f"r-{self._stem}-{next(self._count)}"
