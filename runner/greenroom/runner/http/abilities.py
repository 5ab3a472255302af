"""What a model or a backend cannot do is refused before anything is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.scheduler.backend_choice import choose
from greenroom.actors.scheduler.ledger import Capacity, context_reckoned, reservation_for
from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import Medium, Mode, Model
from greenroom.runner.backends.base import Dialect
from greenroom.runner.daemon import Greenroom
from greenroom.runner.errors import JobFailed
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.models.description import files_of
from greenroom.runner.units import format_size

TOO_LONG = "context_length_exceeded"
_REMEMBERED = 1000
_MEDIA: Mapping[str, tuple[Medium, str]] = {
    "image_url": ("image", "images"),
    "video_url": ("image", "videos"),
    "input_audio": ("audio", "sound"),
    "audio_url": ("audio", "sound"),
}
"""Kinds of parts that are no text: what a model must read for them, and what they are."""
_LONGEST_TOKEN = 256
"""Bytes of text, without spaces, that one token stands for at the very most: tokenizers know long runs of
one character, of 128 at most in those that are published."""


@dataclass(frozen=True)
class RequestTarget:
    """What was asked, for the sentences of refusals."""

    backend: str
    model: str
    """As the client wrote it."""
    param: str = "messages"
    """The field that holds the prompt."""


class Traits(NamedTuple):
    """What a model can do, by its files."""

    pools: bool
    """It makes embeddings by itself; True also where its files do not tell."""


class Abilities:
    """Refuses requests that no engine could serve. One for a front door."""

    def __init__(self, greenroom: Greenroom, configs: Callable[[], Mapping[str, ModelConfigState]]) -> None:
        """`configs` tells how models are configured, by `config_key`."""
        self._greenroom = greenroom
        self._configs = configs
        self._traits: dict[str, Traits] = {}
        self._contexts: dict[str, tuple[Model, Mapping[str, ModelConfigState], int]] = {}
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
        configs = self._configs()
        if mode == "completion":
            known = self._contexts.get(model.id)
            if known is None or known[0] is not model or known[1] is not configs:
                if len(self._contexts) >= _REMEMBERED:
                    self._contexts.clear()
                known = self._contexts[model.id] = model, configs, _context_of(model, configs)
            if context_size > known[2] > 0:
                await self._see_that_it_fits(model, backend, context_size)
            _check_length(known[2] and max(known[2], context_size), fields, asked)
        dialects = self._greenroom.backends
        if mode != "embedding" and not any(
            cannot.asked(fields) for one in dialects.values() for cannot in one.dialect.cannot
        ):
            return
        name = self._serving(model, mode, backend)
        if name is None:
            return  # the scheduler will say why
        dialect = dialects[name].dialect
        refuse_what_it_cannot(name, dialect, fields)
        by_header = mode == "embedding" and dialect.pools_by_header
        if (
            by_header
            and not _pooling(_config(configs, model, mode).flags or ())
            and not (await self.traits(model)).pools
        ):
            raise HttpRefusal(
                422,
                "not_an_embedding_model",
                f'The model "{asked.model}" does not make embeddings.',
                advice="Use an embedding model, or configure --pooling for this one.",
                param="model",
            )

    async def _see_that_it_fits(self, model: Model, backend: str, context_size: int) -> None:
        """Raise HttpRefusal for a context that could never be loaded: nothing is to end for it."""
        readers = [
            one
            for one in self._greenroom.facts
            if model.format in one.formats and "completion" in one.modes and backend in ("", one.name)
        ]
        needed = budget = 0
        for one in readers:
            capacity = Capacity(slots=1 if one.slots else 0, shares_cache=one.shares_cache)
            needed = reservation_for(model, context_size, one.overhead, capacity).total
            # In a thread: limits of the system are read from files.
            budget = await asyncio.to_thread(self._greenroom.budget_for, one.name)
            if needed <= budget:
                return
        if readers:
            raise HttpRefusal(
                507,
                "does_not_fit",
                f"A context of {context_size} tokens needs {format_size(needed)} of memory; engines may use "
                f"{format_size(budget)} in total.",
                advice="Ask for a smaller one.",
                numbers={"needed": float(needed), "budget": float(budget)},
            )

    def _serving(self, model: Model, mode: Mode, backend: str) -> str | None:
        greenroom = self._greenroom
        statuses = {one.name: one for one in greenroom.statuses()}
        choice = choose(model, mode, backend, greenroom.settings.install_policy, greenroom.facts, statuses)
        return None if isinstance(choice, Refusal) else choice.backend

    async def traits(self, model: Model) -> Traits:
        """What its files say of it, read once."""
        known = self._traits.get(model.id)
        if known is None:
            known = await asyncio.to_thread(self._read, model)
            if len(self._traits) < _REMEMBERED:
                self._traits[model.id] = known
        return known

    def _read(self, model: Model) -> Traits:
        try:
            _, config = files_of(self._greenroom.store, model.id)
        except JobFailed:
            return Traits(pools=True)  # loading it will say what is wrong
        if model.format != "gguf":
            return Traits(pools=True)
        header = config.get("gguf")
        known = isinstance(header, dict) and bool(header)
        pools = not known or any(
            name.endswith(".pooling_type") and str(value) not in ("0", "4")
            for name, value in (header or {}).items()
        )
        return Traits(pools=pools)


def _config(configs: Mapping[str, ModelConfigState], model: Model, mode: Mode) -> ModelConfigState:
    return configs.get(config_key(model.id, mode), ModelConfigState())


def _context_of(model: Model, configs: Mapping[str, ModelConfigState]) -> int:
    """Tokens that a completion may have; 0 where that is not known before the model is loaded."""
    config = _config(configs, model, "completion")
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
                "unsupported_parameter",
                f"{cannot.param}: {backend} cannot do this. {cannot.instead}".strip(),
                param=cannot.param,
            )


def _refuse_what_it_cannot_read(model: Model, fields: Mapping[str, Any], asked: RequestTarget) -> None:
    """Refuse images and sound for a model that reads none. Raises HttpRefusal: 400."""
    if (reads := model.reads) is None:
        return  # the engine will say so
    for kind, where in _media_in(fields):
        medium, named = _MEDIA[kind]
        if medium not in reads:
            raise HttpRefusal(
                400,
                "unsupported_input",
                f'The model "{asked.model}" cannot read {named}: it has no projector for them.',
                advice="Send text, or use a model that has one.",
                param=where,
            )


def _media_in(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Kinds of parts of a checked chat that are no text, and where they stand."""
    for number, message in enumerate(fields.get("messages") or ()):
        content = message.get("content")
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if part["type"] in _MEDIA:
                yield part["type"], f"messages[{number}].content[{index}]"


def _least_tokens(fields: Mapping[str, Any]) -> tuple[int, bool]:
    """How many tokens the prompt has at least, and whether that is their number."""
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and isinstance(prompt[0], int):
        return len(prompt), True
    if isinstance(prompt, list) and isinstance(prompt[0], list):
        return max(map(len, prompt)), True
    if isinstance(prompt, list):
        return max(map(_least, prompt)), False
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


def _pooling(flags: Sequence[str]) -> bool:
    return any(flag.partition("=")[0] == "--pooling" for flag in flags)


def too_long(asked: RequestTarget, tokens: int, context: int, *, at_least: bool = False) -> HttpRefusal:
    """A prompt that does not fit into the context."""
    numbers = {"n_prompt_tokens": float(tokens), "n_ctx": float(context)}
    has = f"has {'at least ' if at_least else ''}{tokens} tokens" if tokens else "is too long"
    most = f"at most {context}" if context else "fewer"
    return HttpRefusal(
        400,
        TOO_LONG,
        f'The prompt {has}, and "{asked.model}" accepts {most} here.',
        advice="Shorten it, or configure a larger context-size for the model.",
        numbers={name: number for name, number in numbers.items() if number},
        param=asked.param,
    )
