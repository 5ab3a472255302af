"""What an inference request passes before it is inside an engine.

1. `Abilities`: what its model or backend cannot do is refused before anything is loaded.
2. `Suspects`: a request that may have crashed engines is not sent to another. A request is a suspect when an
   engine crashed with this one alone inside, or when it was inside at two such crashes. It is remembered as a
   hash for ten minutes. Requests that were inside together at one crash are *candidates*: they are sent again
   one at a time, so that none is blamed for another's crash.
3. `Admission`: it gets a slot, from the open gate of a ready engine or from the scheduler.
4. `translate`: fields that its engine must not see go, and the model gets the engine's name for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from greenroom.actors.gates import Place
from greenroom.actors.installer.messages import PlanInstall
from greenroom.actors.kernel.errors import ActorStopped, KernelError, Refusal, Refused
from greenroom.actors.limits import SLOTS
from greenroom.actors.progress import request_job
from greenroom.actors.scheduler.backend_choice import choose
from greenroom.actors.scheduler.ledger import Capacity, context_reckoned, reservation_for
from greenroom.actors.scheduler.messages import Abandon, CallerFound, Granted, Keep, Serve
from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import Caller, Mode, Model, Plan
from greenroom.runner.backends.base import Dialect
from greenroom.runner.daemon import Greenroom
from greenroom.runner.errors import JobFailed
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.models.description import files_of
from greenroom.runner.models.manifest import MMPROJ
from greenroom.runner.units import format_size

_log = logging.getLogger(__name__)
TOO_LONG = "context_length_exceeded"
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

_REMEMBERED = 1000
_MEDIA = {
    "image_url": "images",
    "image": "images",
    "video_url": "videos",
    "input_audio": "sound",
    "audio_url": "sound",
}
_LONGEST_TOKEN = 256
"""Bytes of text, without spaces, that one token stands for at the very most: tokenizers know long runs of
one character, of 128 at most in those that are published."""


KEPT = 600.0
"""Seconds a request is remembered."""
_MOST = 4096
"""Requests that are remembered; the oldest are forgotten first."""
_ENGINES = 64
"""Engines that are remembered beyond those that run."""
_AFTERMATH = 5.0
"""Seconds during which a crash is still blamed on a request whose client has left."""
_PLAN_WITHIN = 2.0
"""Seconds to wait for the size of a download, for a refusal."""
_LOOK_AFTER = 0.1
"""Seconds a request waits before the process that sent it is looked up."""
_REBUILDS = 5
"""How often a request survives a rebuild of the scheduler."""


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

    sees: bool
    """It takes images or sound."""
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
        media = next(_media_in(fields), None)
        if media is not None and not (await self.traits(model)).sees:
            kind, where = media
            raise HttpRefusal(
                400,
                "unsupported_input",
                f'The model "{asked.model}" cannot read {_MEDIA[kind]}: it has no projector.',
                advice="Send text, or use a model with a projector.",
                param=where,
            )
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
            files, config = files_of(self._greenroom.store, model.id)
        except JobFailed:
            return Traits(sees=True, pools=True)  # loading it will say what is wrong
        if model.format != "gguf":
            names = {str(file["name"]).rpartition("/")[2] for file in files}
            return Traits(
                sees=bool(names & {"preprocessor_config.json", "processor_config.json"}), pools=True
            )
        header = config.get("gguf")
        known = isinstance(header, dict) and bool(header)
        pools = not known or any(
            name.endswith(".pooling_type") and str(value) not in ("0", "4")
            for name, value in (header or {}).items()
        )
        sees = any(file["media_type"] == MMPROJ or "mmproj" in str(file["name"]).lower() for file in files)
        return Traits(sees=sees, pools=pools)


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


def spoken_by(dialect: Dialect, model: Model) -> str | None:
    """What the engine calls the model, or None when it takes any name."""
    return dialect.spoken(model.id) if dialect.model_name else None


def translate(body: bytes, dialect: Dialect, name: str | None, ours: frozenset[str] = frozenset()) -> bytes:
    """The body as the engine may see it, without what is `ours`; `name` is what it calls the model."""
    dropped = dialect.dropped | ours if ours else dialect.dropped
    if name is None and not dropped:
        return body
    fields = _fields.decode(body)
    for field in dropped:
        fields.pop(field, None)
    if name is not None:
        fields["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(fields)


def dropped_of(body: bytes, dialect: Dialect) -> list[str]:
    """The fields of a body that the engine does not get; the client gets a list of them."""
    return sorted(dialect.dropped & _fields.decode(body).keys()) if dialect.dropped else []


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


def _media_in(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Kinds of parts that are no text, and where they stand."""
    messages = fields.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        yield from _parts_in(message.get("content"), f"messages[{number}].content")


def _parts_in(content: Any, where: str) -> Iterator[tuple[str, str]]:
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if part["type"] in _MEDIA:
            yield part["type"], f"{where}[{index}]"
        elif part["type"] == "tool_result":
            yield from _parts_in(part.get("content"), f"{where}[{index}].content")


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


# requests that crash engines


def slots_of(fields: Mapping[str, Any]) -> int:
    """Slots that a request takes: one for each answer it wants at the same time."""
    prompt = fields.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    answers = max(fields.get("n", 1), fields.get("best_of", 1))
    return min(prompts * int(answers), SLOTS)


def fingerprint(model_id: str, path: str, body: bytes) -> bytes:
    digest = hashlib.blake2b(f"{model_id}\n{path}\n".encode(), digest_size=16)
    digest.update(body)
    return digest.digest()


class Suspects:
    """All of one front context. Lives in one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        """How many crashes each request was inside at (alone counts two), and until when that is kept."""
        self._inside: dict[str, dict[str, float]] = {}
        """Requests inside each engine; for those that left early, until when it may die of them."""
        self._company: dict[str, bool] = {}
        """Engines that broke off, and whether several were inside then."""
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._deaths)

    @property
    def engines(self) -> int:
        """How many engines it remembers."""
        return len(self._inside.keys() | self._company.keys())

    def counts(self, print_: bytes) -> int:
        """Deaths this request was inside at: two make it a suspect."""
        deaths, until = self._deaths.get(print_, (0, 0.0))
        return deaths if until > self._clock() else 0

    @property
    def turn(self) -> asyncio.Lock:
        """Held by the candidate that is being tried again."""
        return self._turn

    def enter(self, engine_id: str, request_id: str) -> None:
        if len(self._inside) > _ENGINES:
            for gone in [one for one, inside in self._inside.items() if not self._present(inside)]:
                del self._inside[gone]
        self._inside.setdefault(engine_id, {})[request_id] = 0.0

    def leave(self, engine_id: str, request_id: str, *, early: bool) -> None:
        """Its answer is whole, or it has been let go of `early`."""
        inside = self._inside.get(engine_id, {})
        if early and request_id in inside:
            inside[request_id] = self._clock() + _AFTERMATH
        else:
            inside.pop(request_id, None)
        if not inside:
            self._inside.pop(engine_id, None)

    def in_company(self, engine_id: str) -> bool:
        """Whether several requests were inside an engine when it died; later calls give the same answer."""
        known = self._company.get(engine_id)
        if known is None:
            known = self._company[engine_id] = self._present(self._inside.get(engine_id, {})) > 1
            while len(self._company) > _ENGINES:
                del self._company[next(iter(self._company))]
        return known

    def lives(self, engine_id: str) -> None:
        """The engine only closed a connection."""
        self._company.pop(engine_id, None)

    def _present(self, inside: dict[str, float]) -> int:
        now = self._clock()
        return sum(until == 0 or until > now for until in inside.values())

    def blame(self, print_: bytes, *, in_company: bool) -> bool:
        """Count an engine's own death against a request that was inside. Whether it is a suspect now."""
        deaths = min(2, self.counts(print_) + (1 if in_company else 2))
        self._deaths[print_] = deaths, self._clock() + KEPT
        self._deaths.move_to_end(print_)
        while len(self._deaths) > _MOST:
            self._deaths.popitem(last=False)
        return deaths > 1


# slots


class RequestIds:
    """Ids for requests: unique forever, since they stand in the journal as causes."""

    def __init__(self) -> None:
        self._stem = secrets.token_hex(4)
        self._count = itertools.count(1)

    def next(self) -> str:
        return f"r-{self._stem}-{next(self._count)}"


@dataclass
class Admission:
    """How one request gets a slot in an engine's gate, and gives it back."""

    greenroom: Greenroom
    ids: RequestIds
    model: Model
    asked_as: str
    """The model's name as the client wrote it."""
    mode: Mode
    backend: str = ""
    """Unless empty, it is binding."""
    caller: Caller = Caller()  # noqa: RUF009 - frozen
    """What is known of it at once."""
    look_up: Callable[[], Awaitable[Caller]] | None = None
    """Finds out more about the caller, for a request that has to queue."""
    slots: int = 1
    """Slots that it needs."""
    first_id: str = ""
    """Used for the first attempt; each further one has an id of its own."""
    keep_alive: float | None = None
    """Seconds the model stays after this request; negative means indefinitely."""
    context_size: int = 0
    """Tokens that it may fill at least, whatever is configured; 0 leaves that open."""
    request_id: str = ""
    """The id under which the slot is held or awaited; else empty."""
    _asked: bool = False
    _grant_due: bool = False

    async def enter(self, *, skip_gate: bool = False) -> Place:
        """Wait for a slot. Raises Refused and the kernel's other errors.

        With `skip_gate` the scheduler is asked in any case: the gate that is open may be that of an engine
        which has just died.
        """
        assert not self.request_id
        self.request_id, self.first_id = self.first_id or self.ids.next(), ""
        if not skip_gate and not self._wants_more():
            place = self.greenroom.gates.enter(
                self.model.id, self.mode, self.backend, self.request_id, self.caller, self.slots
            )
            if place is not None:
                self._wish()
                return place
        for rebuilds in range(_REBUILDS + 1):
            try:
                return await self._ask()
            except ActorStopped:
                # A rebuilt scheduler has forgotten which requests wait, and nothing else.
                if rebuilds == _REBUILDS or self.greenroom.system.failure is not None:
                    raise
            self.leave()
            await asyncio.sleep(0.05 * (rebuilds + 1))
            self.request_id = self.ids.next()
        raise AssertionError("the last round returns or raises")

    def leave(self) -> None:
        """Give the slot back, or stop waiting for one."""
        request_id, self.request_id = self.request_id, ""
        if not request_id:
            return
        self.greenroom.gates.leave(request_id)
        if self._asked:
            self._asked = False
            self.greenroom.board.clear(request_job(request_id))
        if self._grant_due:
            self._grant_due = False
            # Without a scheduler nothing can be granted any more.
            with contextlib.suppress(KernelError):
                self.greenroom.system.tell(Abandon(request_id=request_id), cause=request_id)

    def _wants_more(self) -> bool:
        """Whether an engine of this model has too small a context for the request."""
        return self.context_size > 0 and any(
            context_reckoned(one.spec.context_size, self.model.context_length) < self.context_size
            for one in self.greenroom.engines()
            if one.state == "ready" and (one.spec.model_id, one.spec.mode) == (self.model.id, self.mode)
        )

    async def _ask(self) -> Place:
        serve = Serve(
            request_id=self.request_id,
            model_id=self.model.id,
            model_ref=self.asked_as,
            mode=self.mode,
            backend=self.backend,
            caller=self.caller,
            slots=self.slots,
            keep_alive=self.keep_alive,
            context_size=self.context_size,
            held=True,
        )
        self._asked = self._grant_due = True
        look = asyncio.create_task(self._find_caller()) if self.look_up is not None else None
        # The scheduler limits the wait; should it end, so does the wait.
        try:
            granted: Granted = await self.greenroom.system.ask(serve, cause=self.request_id)
        except Refused as refused:
            self._grant_due = False
            raise Refused(await self._sized(refused.refusal)) from None
        finally:
            if look is not None:
                look.cancel()
        self._grant_due = False
        return Place(granted.engine_id, granted.backend, granted.endpoint)

    async def _find_caller(self) -> None:
        """Look up the caller while its request waits already: callers take turns."""
        look_up, self.look_up = self.look_up, None
        if look_up is None:
            return
        # A request that is granted at once takes no turn, and a look-up costs some hundredths of a second.
        await asyncio.sleep(_LOOK_AFTER)
        found = await look_up()
        if found != self.caller:
            self.caller = found
            # It only decides about turns: not worth an error.
            with contextlib.suppress(KernelError):
                told = CallerFound(request_id=self.request_id, caller=found)
                self.greenroom.system.tell(told, cause=self.request_id)

    async def _sized(self, refusal: Refusal) -> Refusal:
        """A refusal for want of a backend, with how much installing it would fetch."""
        if refusal.code != "backend_not_installed" or refusal.numbers:
            return refusal
        try:
            plan: Plan = await self.greenroom.system.ask(
                PlanInstall(backend=refusal.subject), timeout=_PLAN_WITHIN
            )
        except KernelError as error:
            # Without the size the refusal is still right.
            _log.info("no size for %s: %s", refusal.subject, error)
            return refusal
        return msgspec.structs.replace(refusal, numbers={"download_bytes": float(plan.download_bytes)})

    def _wish(self) -> None:
        """Send the scheduler the keep-alive of a request that found a free slot and so has not asked it."""
        if self.keep_alive is None:
            return
        keep = Keep(model_id=self.model.id, mode=self.mode, keep_alive=self.keep_alive)
        # It is about the time after this request: not worth an error.
        with contextlib.suppress(KernelError):
            self.greenroom.system.tell(keep, cause=self.request_id)
