"""Errors of engines, in our words.

An engine's error may quote a client, even another one: engines serve several at once, and some quote whole
requests. So none of its text is passed on. It is matched against known errors, and each mistake has one code,
one status and one sentence, whichever the engine. Numbers are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from greenroom.actors.gates import Place
from greenroom.actors.scheduler.state import OVER_MEMORY
from greenroom.actors.values import EngineExit
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.bodies import NOT_UNDERSTOOD
from greenroom.runner.http.engine_requests import TOO_LONG, RequestTarget, too_long
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.suspects import Suspects
from greenroom.runner.http.upstream import Connection, Lost

_END_WITHIN = 3.0
"""Seconds to wait for the cause of an engine's death."""
_PAUSE = 0.025
_OWN_SIGNALS = frozenset(("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS"))
_TOLD_TO = frozenset((0, 130, 143))
"""Exit codes of a program that ended after SIGINT or SIGTERM."""


_LOOKED_AT = 4000
"""Characters of an engine's words that are looked at: it may have quoted megabytes."""


_TOLD = 64 * 1024
"""Bytes of an engine's error that are read."""
_TOLD_WITHIN = 5.0
"""Seconds to wait for that."""


class _Known(NamedTuple):
    pattern: re.Pattern[str]
    status: int
    code: str
    message: str
    advice: str = ""
    param: str | None = None


def _known(pattern: str, *rest: Any) -> _Known:
    return _Known(re.compile(pattern, re.IGNORECASE | re.DOTALL), *rest)


_TEXT_ONLY = 'The model "{model}" cannot read this kind of input: it has no projector.'
_KNOWN = (
    _known(
        r"(?:image|audio|video) input is not supported|only 'text' content type|not a multimodal model"
        r"|(?:image|audio|video)s? (?:is|are) not supported",
        400, "unsupported_input", _TEXT_ONLY, "Send text, or use a model with a projector.", "messages",
    ),
    _known(
        r"failed to (?:load|decode|process) (?:image|audio|bitmap|media)|invalid base64"
        r"|cannot identify image",
        400, "invalid_input", "An image or audio part of this request cannot be read.",
        "Send images as PNG or JPEG, which every engine reads.", "messages",
    ),
    _known(
        r"pooling type|not support embedding|embeddings? (?:is|are) not supported"
        r"|start it with `?--embedding",
        422, "not_an_embedding_model", 'The model "{model}" does not make embeddings.',
        "Use an embedding model.",
    ),
    _known(
        r"not support rerank|start it with `?--rerank",
        422, "not_a_reranking_model", 'The model "{model}" does not rank documents.',
        "Use a reranking model.",
    ),
    _known(
        r"infill is not supported",
        422, "no_infill", 'The model "{model}" cannot fill in text: it has no tokens for that.',
        "Use a model that was made for code completion.", "model",
    ),
    _known(
        r"contains invalid tokens",
        400, "invalid_value", "A token is not in this model's vocabulary.", "", "messages",
    ),
    _known(
        r"_M_range_check|token id .*out of range",
        400, "invalid_value", "A token is not in this model's vocabulary.", "", "tokens",
    ),
    _known(
        r"JSON schema cannot be enforced: (?P<keyword>not|if|then|else|oneOf|contains|minContains|maxContains"
        r"|uniqueItems|propertyNames|minProperties|dependencies|dependent(?:Required|Schemas)"
        r"|unevaluated(?:Items|Properties))\b",
        400, "invalid_schema", 'The {backend} engine cannot enforce "{keyword}" in a JSON schema.',
        "Leave it out, or use anyOf instead of oneOf.",
    ),
    _known(
        r"JSON schema is too complex",
        400, "invalid_schema", "A JSON schema of response_format or of a tool is too complex.",
        "Use fewer alternatives and references, and shorter or simpler patterns.",
    ),
    _known(
        r"llguidance is not installed",
        400, "unsupported_parameter",
        "The {backend} on this server was installed without what JSON schemas need, llguidance.",
        "On the server: greenroom reinstall-runner {backend}, or install it in your own environment.",
    ),
    _known(
        r"JSON schemas need a tokenizer\.json",
        400, "unsupported_parameter", 'The tokenizer of "{model}" cannot be used with JSON schemas.',
        "Use a GGUF version of the model, which llama.cpp serves.",
    ),
    _known(
        r"json.?schema|\$ref\b|grammar from schema|response_format",
        400, "invalid_schema", "A JSON schema of response_format or of a tool cannot be used.",
        "Use only the types and keywords of JSON Schema, and references within the schema.",
    ),
    _known(
        # Schemas become grammars, so it may be about either.
        r"grammar", 400, "invalid_grammar", "A grammar or JSON schema in this request cannot be used.",
        "Some engines do not accept lengths and repetitions in the thousands.",
    ),
    _known(
        r"tool.choice", 400, "invalid_value", "The engine does not support this tool_choice.", "",
        "tool_choice",
    ),
    _known(
        r"parse tools|tool call|tools param", 400, "invalid_value",
        "The engine cannot read the tools or tool calls in this request.", "", "tools",
    ),
    _known(
        r"jinja|chat.?template|templat|raise_exception|roles must alternate|assistant messages? at the end"
        r"|conversation roles|parse messages",
        400, "template_refused", 'The chat template of "{model}" does not accept these messages.',
        "Some templates require user and assistant to alternate, or allow no system message.", "messages",
    ),
)  # fmt: skip

_LENGTHS = re.compile(
    r"exceeds? the available context size|context size has been exceeded|maximum context length"
    r"|context.?length|longer than the maximum model length|too large to process|exceed_context_size"
    r"|(?:prompt|input|request) is too long"
    r"|physical batch size|max_model_len",
    re.IGNORECASE,
)
_PROMPT_TOKENS = re.compile(
    r"(?:request|prompt|input|has|passed|requested) \(?(\d{1,9})[ a-z]* tokens", re.IGNORECASE
)
_CONTEXT = re.compile(
    r"(?:context (?:size|length)(?: is)?(?: only)?|current batch size:?) \(?(\d{1,9})", re.IGNORECASE
)
_ANSWER_TOKENS = re.compile(r"requested (\d{1,9}) output tokens|is too large: (\d{1,9})\.", re.IGNORECASE)
"""As vLLM tells of `max_tokens`: what it has room for is the prompt and the answer together."""
_FIELD = re.compile(
    r"(?:field )?'?\b(temperature|top_p|top_k|min_p|n|max_tokens|max_completion_tokens|n_predict|stop|seed"
    r"|presence_penalty|frequency_penalty|repeat_penalty|logit_bias|logprobs|top_logprobs|stream"
    r"|stream_options|best_of|prompt|input|samplers|mirostat|dimensions|encoding_format)\b'?"
    r"(?::| must be| is required| should be)",
    re.IGNORECASE,
)
_NAMED = re.compile(r"Field '([a-z_]{1,40})': ")
"""As llama.cpp names a field of its own list."""
_NO_PATH = re.compile(r"(?:file )?not found", re.IGNORECASE)


async def error_body(upstream: Connection, chunk: bytes) -> bytes:
    """An engine's error, as far as it is read."""
    try:
        async with asyncio.timeout(_TOLD_WITHIN):
            return chunk + await upstream.rest(_TOLD)
    except (Lost, TimeoutError):
        return chunk


def engine_error(status: int, body: bytes, asked: RequestTarget) -> HttpRefusal:
    """The refusal for an engine's error: an answer with this status, or an event of its stream."""
    error = _error_of(body)
    words = _words_of(error, body)[:_LOOKED_AT]
    said = error.get("code") if isinstance(error, dict) else None
    if isinstance(said, int) and 400 <= said < 600:
        status = said
    if status == 413:
        message = f'The {asked.backend} engine for "{asked.model}" does not accept a request this large.'
        return HttpRefusal(413, "request_too_large", message, advice="Send less.")
    if _LENGTHS.search(words) or _LENGTHS.search(_text(error, "type")):
        return _too_long(error, words, asked)
    if status in (404, 405, 501) and _NO_PATH.fullmatch(words.strip()):
        message = f"{asked.backend} does not offer this route."
        return HttpRefusal(404, "not_offered", message, subject=asked.backend)
    for known in _KNOWN if 400 <= status < 600 and status != 503 else ():
        if found := known.pattern.search(words):
            told = {"model": asked.model, "backend": asked.backend, **found.groupdict()}
            param = asked.param if known.param == "messages" else known.param
            message, advice = known.message.format_map(told), known.advice.format_map(told)
            return HttpRefusal(known.status, known.code, message, param=param, advice=advice)
    return _by_status(status, words, asked)


def _too_long(error: Any, words: str, asked: RequestTarget) -> HttpRefusal:
    def number(name: str, pattern: re.Pattern[str]) -> int:
        value = error.get(name) if isinstance(error, dict) else None
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
            return value
        found = pattern.search(words)
        return int(found[1]) if found else 0

    prompt, context = number("n_prompt_tokens", _PROMPT_TOKENS), number("n_ctx", _CONTEXT)
    if (found := _ANSWER_TOKENS.search(words)) and 0 < prompt < context:
        answer = int(found[1] or found[2])
        return HttpRefusal(
            400,
            TOO_LONG,
            f"The prompt has {prompt} tokens and max_tokens is {answer}: together more than the {context} "
            f'that "{asked.model}" has room for here.',
            advice=f"Ask for less, or allow more: greenroom configure {asked.model} --context N",
            numbers={"n_prompt_tokens": float(prompt), "n_ctx": float(context)},
            param="max_tokens",
        )
    return too_long(asked, prompt, context)


def _by_status(status: int, words: str, asked: RequestTarget) -> HttpRefusal:
    engine = f'The {asked.backend} engine for "{asked.model}"'
    where = f"greenroom logs {asked.model} on the server may say more."
    if status == 503:
        return HttpRefusal(
            503, "engine_busy", f"{engine} accepts no requests at the moment.", retry_after=2.0
        )
    if status == 429:
        return HttpRefusal(429, "engine_busy", f"{engine} is overloaded.", retry_after=2.0)
    if 400 <= status < 500:
        field = _NAMED.match(words) or _FIELD.search(words)
        if field is not None:
            name = field[1].lower()
            message = f"{name} has a value that the {asked.backend} engine does not accept."
            return HttpRefusal(400, "invalid_value", message, param=name)
        advice = f"A field is invalid; {where}"
        return HttpRefusal(400, "engine_refused", f"{engine} does not accept this request.", advice=advice)
    return HttpRefusal(502, "engine_failed", f"{engine} failed on this request.", advice=where)


def said_in(body: bytes) -> str:
    """The words of an error."""
    return _words_of(_error_of(body), body)[:_LOOKED_AT]


def _error_of(body: bytes) -> Any:
    said: Any = None
    with contextlib.suppress(*NOT_UNDERSTOOD):
        said = msgspec.json.decode(body)
    if not isinstance(said, dict):
        return said
    error = said.get("error")
    return error if isinstance(error, dict | str) and error else said


def _words_of(error: Any, body: bytes) -> str:
    if isinstance(error, str):
        return error
    if isinstance(error, dict):
        return _text(error, "message") or _text(error, "detail")
    return body[:_LOOKED_AT].decode(errors="replace")


def _text(error: Any, name: str) -> str:
    value = error.get(name) if isinstance(error, dict) else None
    return value if isinstance(value, str) else str(value)[:_LOOKED_AT] if value else ""


# engines that broke off


def own_doing(end: EngineExit | None) -> bool:
    """Whether an engine crashed by itself, or took too much memory: not killed or stopped from outside, and
    not given up by us for another reason."""
    if end is not None and end.failure is not None and end.failure.code == OVER_MEMORY:
        return True
    if end is None or end.expected or end.lost or end.failure is not None:
        return False
    if end.signal:
        return end.signal in _OWN_SIGNALS
    return end.code is not None and end.code not in _TOLD_TO


async def lost(
    greenroom: Greenroom,
    suspects: Suspects,
    place: Place,
    asked_as: str,
    print_: Callable[[], bytes],
    when: str,
) -> HttpRefusal:
    """The refusal for an engine that broke off; a request it died of is remembered.

    `asked_as` is the model's name as the client wrote it, and `print_` makes the request's fingerprint.
    """
    in_company = suspects.in_company(place.engine_id)
    end, gone = await _end_of(greenroom, place)
    if not gone:
        suspects.lives(place.engine_id)
        greenroom.gates.doubt(place.engine_id)
        return broke_off(place, asked_as, when)
    what = f'The {place.backend} engine that served "{asked_as}" ended {when}: {_how(end)}.'
    failure = end.failure if end is not None else None
    code = failure.code if failure is not None else "engine_died"
    advice = "Send the request again; another engine will be started."
    if own_doing(end) and suspects.blame(print_(), in_company=in_company):
        if code != OVER_MEMORY:
            return suspected(asked_as, what)
        # It may have been in order, and the estimate too low: that is for the client to know.
        advice = "The request may be the cause, so it is refused for ten minutes; change it."
    return HttpRefusal(502, code, what, advice=advice)


def unreachable(place: Place, asked_as: str) -> HttpRefusal:
    """The refusal while an engine that is said to run takes no connection."""
    return HttpRefusal(
        503,
        "engine_unreachable",
        f'The {place.backend} engine that serves "{asked_as}" cannot be reached.',
        advice=f"greenroom why {asked_as} says more.",
        retry_after=5.0,
    )


def broke_off(place: Place, asked_as: str, when: str) -> HttpRefusal:
    """The refusal for an engine that closed a connection and lives on."""
    return HttpRefusal(
        502,
        "engine_broke_off",
        f'The {place.backend} engine that serves "{asked_as}" broke off {when}.',
        advice="Send the request again.",
    )


def suspected(asked_as: str, what: str = "") -> HttpRefusal:
    """The refusal of a request that may have crashed an engine."""
    return HttpRefusal(
        422,
        "request_ended_engine",
        what or f'An engine for "{asked_as}" ended while it worked on this request.',
        advice="The request may be the cause, so it is refused for ten minutes; change it.",
    )


async def _end_of(greenroom: Greenroom, place: Place) -> tuple[EngineExit | None, bool]:
    """How an engine ended, and whether it has, once its runner knows."""
    for _ in range(round(_END_WITHIN / _PAUSE)):
        engines = greenroom.engines()
        engine = next((one for one in engines if one.spec.engine_id == place.engine_id), None)
        if engine is None or engine.state == "gone":
            return (engine.exit if engine is not None else None), True
        await asyncio.sleep(_PAUSE)
    return None, False


def _how(end: EngineExit | None) -> str:
    """How an engine ended, without anything it printed: that may be from other clients' requests."""
    if end is None:
        return "it is gone"
    if end.failure is not None:
        return end.failure.message.rstrip(".")
    if end.signal:
        return f"it was killed by {end.signal}"
    return "it is gone" if end.code is None else f"it exited with code {end.code}"


def answer_in(place: Place, body: bytes, field: str) -> dict[str, Any]:
    """An engine's whole answer, which has this field."""
    with contextlib.suppress(*NOT_UNDERSTOOD):
        found = msgspec.json.decode(body)
        if isinstance(found, dict) and found.get(field):
            return found
    raise HttpRefusal(502, "engine_failed", f"The {place.backend} engine's answer cannot be read.")
