"""`/engines/_configure`: how a model is loaded from now on, across restarts, until it is removed.

A field that is left out stays as it was; `reset` names settings to remove, and so do `0`, an empty text or an
empty list. For a model in use the answer is 409 and names what uses it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from greenroom.actors import limits
from greenroom.actors.kernel.errors import KernelError, Refused
from greenroom.actors.scheduler.ledger import Capacity, context_reckoned, reservation_for
from greenroom.actors.scheduler.messages import ConfigField, Configure
from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import BackendFacts, Caller, Mode, Model
from greenroom.runner.backends.flags import refusal, without_sizes
from greenroom.runner.http.admission import Admission
from greenroom.runner.http.bodies import invalid, read_json
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal, json_response
from greenroom.runner.http.go_duration import go_duration, parse_go_duration
from greenroom.runner.http.port import Request, Response
from greenroom.runner.models.references import shown_name
from greenroom.runner.units import format_size

_log = logging.getLogger(__name__)

DEFAULT_BACKEND = "llama.cpp"
MODES: tuple[Mode, ...] = ("completion", "embedding", "reranking")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_DEEPEST = 16
"""Objects and lists inside each other in hf-overrides."""
_ALIASES = {
    "context_size": "context-size",
    "num_ctx": "context-size",
    "runtime_flags": "runtime-flags",
    "raw_runtime_flags": "raw-runtime-flags",
    "keep-alive": "keep_alive",
    "parallel": "slots",
    "num_parallel": "slots",
    "prompt_cache": "prompt-cache",
}
"""Other spellings of fields whose meaning is not in doubt."""


_MOST = {"context-size": limits.CONTEXT, "slots": limits.SLOTS, "prompt-cache": limits.SIZE // 2**20}
"""As flags say them: tokens, requests, mebibytes."""


Setting = Literal["context-size", "slots", "prompt-cache", "require-device", "runtime-flags", "keep_alive"]
"""What can be reset."""


class Sizes(NamedTuple):
    """The sizes for which the ledger reserves memory; None where nothing is said."""

    context: int | None
    slots: int | None
    prompt_cache: int | None


class LlamaCppBody(msgspec.Struct, rename="kebab"):
    """What only llama.cpp understands."""

    reasoning_budget: Annotated[int, Meta(ge=-1, le=limits.CONTEXT)] | None = None


class VllmBody(msgspec.Struct, rename="kebab"):
    """What only vllm understands."""

    hf_overrides: dict[str, Any] | None = None
    gpu_memory_utilization: Annotated[float, Meta(ge=0, le=1)] | None = None


class ConfigureBody(msgspec.Struct, rename="kebab"):
    """`POST /engines/_configure`; what is absent stays as it is."""

    model: limits.Name = ""
    mode: Mode | None = None
    context_size: limits.Context | UnsetType = UNSET
    """Tokens that each request may fill."""
    slots: limits.Slots | UnsetType = UNSET
    """Requests answered at the same time."""
    prompt_cache: limits.PromptCache | UnsetType = UNSET
    """Bytes of prompts that are kept after their requests; 0 is none."""
    require_device: bool | UnsetType = UNSET
    """Load it only if it lies on graphics devices as a whole."""
    runtime_flags: limits.Flags | UnsetType = UNSET
    raw_runtime_flags: limits.Flag | UnsetType = UNSET
    keep_alive: limits.Id | UnsetType = msgspec.field(name="keep_alive", default=UNSET)
    reset: Annotated[tuple[Setting, ...], Meta(max_length=64)] = ()
    """Settings that go back to their defaults."""
    preload: bool = True
    """Load the model with it, in the background."""
    speculative: dict[str, Any] | None = None
    llamacpp: LlamaCppBody | None = None
    vllm: VllmBody | None = None


_TAKEN_WITHIN = 5.0
"""Seconds in which a load that has just been decided is taken up by its runner, and can be replaced."""


class Configuring:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._preloads: dict[str, asyncio.Task[object]] = {}
        """What loads, by `config_key`."""

    async def configure(self, request: Request) -> Response:
        """Change how a model is loaded, then load it in the background unless that is not wanted."""
        context = self._context
        backend = request.backend
        body = await read_json(request, ConfigureBody, aliases=_ALIASES)
        if not body.model.strip():
            raise invalid("model is required")
        if (body.speculative or {}).get("draft_model"):
            raise invalid("draft models are not supported; leave speculative out")
        model = context.greenroom.model(body.model)
        body = _without_resets(body)
        given = _flags(body)
        usual: Mode = "embedding" if given and "--embeddings" in given else model.made_for or "completion"
        mode = body.mode or usual
        old = context.greenroom.configs().get(config_key(model.id, mode), ModelConfigState())
        if given:
            self._check(given, model, backend)
        flags, sizes = _sizes(body, given)
        if sizes.context is not None or sizes.slots is not None or sizes.prompt_cache is not None:
            await self._see_that_it_fits(_with_old(sizes, old, model), model, mode, backend)
        # Sizes among the flags, as older versions kept them there, would beat what is said now.
        kept = without_sizes(old.flags or ())[0]
        flags = _with_options(flags, kept, _options(body, model))
        if flags is None and kept != (old.flags or ()):
            flags = kept
        reset: list[ConfigField] = []
        if body.context_size == 0 and sizes.context is None:
            reset.append("context_size")
        if body.slots == 0 and sizes.slots is None:
            reset.append("slots")
        if body.prompt_cache == -1:
            reset.append("prompt_cache")
        if "require-device" in body.reset:
            reset.append("require_device")
        if flags == ():
            flags = None
            reset.append("flags")
        if body.keep_alive == "":
            reset.append("keep_alive")
        configure = Configure(
            model_id=model.id,
            model_ref=body.model.strip(),
            mode=mode,
            context_size=sizes.context,
            slots=sizes.slots,
            prompt_cache=sizes.prompt_cache,
            require_device=body.require_device if isinstance(body.require_device, bool) else None,
            flags=flags,
            keep_alive=_keep_alive(body.keep_alive) if body.keep_alive else None,
            reset=tuple(reset),
            caller=await context.callers.looked_up(request),
        )
        await self._change(configure, request.id)
        if body.preload:
            self._begin_preload(model, body.model.strip(), mode, backend, request.id)
        return Response(status=202)

    async def _change(self, configure: Configure, request_id: str) -> None:
        """Store a configuration; what is loaded because of an earlier one gives way to it."""
        preload = self._preloads.pop(config_key(configure.model_id, configure.mode), None)
        if preload is not None:
            preload.cancel()
            await asyncio.wait({preload})
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _TAKEN_WITHIN
        while True:
            try:
                await self._context.greenroom.system.ask(configure, cause=request_id)
            except Refused as refused:
                if refused.refusal.code != "begins_to_load" or loop.time() >= give_up:
                    raise
            else:
                return
            await asyncio.sleep(0.05)

    def _begin_preload(self, model: Model, asked_as: str, mode: Mode, backend: str, request_id: str) -> None:
        """Load a model in the background, on behalf of the request that configured it."""
        context, key = self._context, config_key(model.id, mode)
        caller = Caller(kind="greenroom", id="preload", name="preload")
        admission = Admission(
            context.greenroom,
            context.ids,
            context.sent_requests,
            model,
            asked_as,
            mode,
            backend,
            caller,
            first_id=request_id,
        )
        self._preloads = {one: task for one, task in self._preloads.items() if not task.done()}
        self._preloads[key] = context.keep(_preload(admission))

    async def configurations(self, request: Request) -> Response:
        """What was configured, for one model or for all."""
        greenroom = self._context.greenroom
        backend = request.backend or DEFAULT_BACKEND
        configs = self._context.greenroom.configs()
        wanted = request.query.get("model", "")
        models = [self._context.greenroom.model(wanted)] if wanted else list(greenroom.models())
        entries = []
        for model in models:
            for mode in MODES:
                config = configs.get(config_key(model.id, mode))
                if config is not None:
                    entries.append(
                        {
                            "Backend": backend,
                            "Model": shown_name(model),
                            "ModelID": model.id,
                            "Mode": mode,
                            "Config": as_configured(config),
                        }
                    )
        return json_response(entries)

    def _check(self, flags: tuple[str, ...], model: Model, backend: str) -> None:
        """Raise HttpRefusal unless a backend that could serve the model allows them."""
        readers = [one for one in self._context.greenroom.backends.values() if model.format in one.formats]
        reasons = [
            refusal(flags, one.allowed_flags, one.name) for one in readers if backend in ("", one.name)
        ]
        if all(reasons):
            reason = reasons[0] if reasons else f"no backend of that name reads {model.format}"
            sentence = limits.escaped(f"{reason[:1].upper()}{reason[1:]}.", 400)
            raise HttpRefusal(400, "flag_refused", sentence, param="runtime-flags")

    async def _see_that_it_fits(self, sizes: Sizes, model: Model, mode: Mode, backend: str) -> None:
        """Raise HttpRefusal for sizes with which the model could not be loaded ever: each request for it
        would be refused from then on.
        """
        greenroom = self._context.greenroom
        readers = [
            one
            for one in greenroom.facts
            if model.format in one.formats and mode in one.modes and backend in ("", one.name)
        ]
        # In a thread: limits of the system are read from files.
        budgets = [await asyncio.to_thread(greenroom.memory.budget_for, one.name) for one in readers]
        needs = [_needed(model, sizes, one) for one in readers]
        if not readers or any(need <= budget for need, budget in zip(needs, budgets, strict=True)):
            return
        budget, needed, reader = max(zip(budgets, needs, readers, strict=True), key=lambda one: one[0])
        advice = "Choose fewer slots, a smaller prompt cache or a smaller model."
        if (sizes.slots or 1) == 1:
            least = _needed(model, Sizes(1, 1, sizes.prompt_cache), reader)
            room = (budget - least) // max(model.kv_bytes_per_token, 1)
            advice = f"The largest that fits is {room} tokens." if room > 0 else "Choose a smaller model."
        slots = f" in each of {sizes.slots} slots" if (sizes.slots or 1) > 1 else ""
        context = context_reckoned(sizes.context or 0, model.context_length)
        raise HttpRefusal(
            507,
            "does_not_fit",
            f"{shown_name(model)} with a context of {context} tokens{slots} needs {format_size(needed)} of "
            f"memory; engines may use {format_size(budget)} in total.",
            advice=f"{advice} Nothing has changed.",
            param="slots" if slots else "context-size",
            numbers={"needed": float(needed), "budget": float(budget)},
        )


def _needed(model: Model, sizes: Sizes, facts: BackendFacts) -> int:
    capacity = Capacity(
        slots=(sizes.slots or 1) if facts.slots else 0,
        prompt_cache=max(0, sizes.prompt_cache or 0) if facts.prompt_cache else None,
        shares_cache=facts.shares_cache,
    )
    return reservation_for(model, sizes.context or 0, facts.overhead, capacity).total


def _with_old(sizes: Sizes, old: ModelConfigState, model: Model) -> Sizes:
    """What will be in force: what is said now, else what was said before, else what the model comes with."""
    context = old.context_size if old.context_size is not None else model.context_size
    return Sizes(
        sizes.context if sizes.context is not None else context,
        sizes.slots if sizes.slots is not None else old.slots,
        sizes.prompt_cache if sizes.prompt_cache is not None else old.prompt_cache,
    )


def as_configured(config: ModelConfigState) -> dict[str, Any]:
    """Docker's `BackendConfiguration`, with what we have beside it."""
    fields: dict[str, Any] = {}
    if config.context_size is not None:
        fields["context-size"] = config.context_size
    if config.slots:
        fields["slots"] = config.slots
    if config.prompt_cache is not None and config.prompt_cache >= 0:
        fields["prompt-cache"] = config.prompt_cache
    if config.require_device is not None:
        fields["require-device"] = config.require_device
    if config.flags:
        fields["runtime-flags"] = list(config.flags)
    if config.keep_alive is not None:
        fields["keep_alive"] = go_duration(config.keep_alive)
    return fields


_AS_NOTHING: Mapping[str, Any] = {
    "context-size": 0,
    "slots": 0,
    "prompt-cache": -1,
    "require-device": UNSET,
    "runtime-flags": (),
    "keep_alive": "",
}
"""What each setting is given as to remove it."""


def _without_resets(body: ConfigureBody) -> ConfigureBody:
    """The body with what it resets given as nothing. Raises HttpRefusal for what it sets as well."""
    fields = {one.encode_name: one.name for one in msgspec.structs.fields(ConfigureBody)}
    for name in body.reset:
        if getattr(body, fields[name]) is not UNSET or (name == "runtime-flags" and body.raw_runtime_flags):
            raise invalid(f'"{name}" is both set and reset', param=name)
    return msgspec.structs.replace(body, **{fields[name]: _AS_NOTHING[name] for name in body.reset})


def _flags(body: ConfigureBody) -> tuple[str, ...] | None:
    """The flags as they were given, in either form; None when nothing was said about them."""
    if body.runtime_flags:
        flags: tuple[str, ...] = body.runtime_flags
    elif body.raw_runtime_flags:
        try:
            flags = tuple(shlex.split(body.raw_runtime_flags))
        except ValueError as error:
            raise invalid(f"raw-runtime-flags cannot be read: {error}", param="raw-runtime-flags") from None
    else:
        return None if body.runtime_flags is UNSET and body.raw_runtime_flags is UNSET else ()
    if too_much := limits.flags_complaint(flags):
        raise HttpRefusal(400, "flag_refused", too_much, param="runtime-flags")
    return flags


def _sizes(body: ConfigureBody, flags: tuple[str, ...] | None) -> tuple[tuple[str, ...] | None, Sizes]:
    """The flags without sizes among them, and the sizes: they are kept in one place, for the ledger.

    None where nothing was said. Raises HttpRefusal.
    """
    kept, typed = without_sizes(flags or ())
    found: dict[str, set[int]] = {"context-size": set(), "slots": set(), "prompt-cache": set()}
    for setting, value in typed:
        if not re.fullmatch(r"-?[0-9]{1,9}", value) or int(value) > _MOST[setting]:
            raise invalid(
                f"{limits.escaped(value, 40)} is not a number from 0 to {_MOST[setting]}",
                param="runtime-flags",
            )
        number = int(value)
        if setting == "prompt-cache":
            if number < 0:
                raise invalid(
                    f"{value} means a prompt cache without a limit, and memory is reserved for it; give its "
                    "size in MiB, or leave the flag out to have Greenroom choose",
                    param="runtime-flags",
                )
            number *= 2**20
        elif setting == "context-size":
            number = number or -1
        found[setting].add(number)
    for setting, said in (
        ("context-size", body.context_size or None),
        ("slots", body.slots or None),
        ("prompt-cache", None if body.prompt_cache == -1 else body.prompt_cache),
    ):
        if isinstance(said, int):
            found[setting].add(said)
    for setting, values in found.items():
        if len(values) > 1:
            raise invalid(
                f"{setting} is given twice with different values; give {setting} once", param=setting
            )
    context, slots, cache = (values.pop() if values else None for values in found.values())
    return (kept if flags is not None else None), Sizes(context, slots, cache)


def _options(body: ConfigureBody, model: Model) -> dict[str, str]:
    """What a backend's own section asks for, as that backend's flags. Raises HttpRefusal."""
    options: dict[str, str] = {}
    if body.llamacpp is not None and body.llamacpp.reasoning_budget is not None:
        _only("llamacpp", "gguf", model)
        options["--reasoning-budget"] = str(body.llamacpp.reasoning_budget)
    if body.vllm is not None:
        share, overrides = body.vllm.gpu_memory_utilization, body.vllm.hf_overrides
        if share is not None:
            _only("vllm", "safetensors", model)
            options["--gpu-memory-utilization"] = f"{share:g}"
        if overrides:
            _only("vllm", "safetensors", model)
            _check_keys(overrides)
            options["--hf-overrides"] = json.dumps(overrides, allow_nan=False)
    return options


def _only(section: str, reads: str, model: Model) -> None:
    if not model.format.startswith(reads):
        raise invalid(f"{section} is for {reads} models; {shown_name(model)} is {model.format}")


def _check_keys(value: Any, depth: int = 0) -> None:
    """Keys become attributes of Python objects: nothing but plain names, however deep they lie."""
    if depth > _DEEPEST:
        raise invalid(f"hf-overrides is nested more than {_DEEPEST} deep", param="vllm")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not _KEY.fullmatch(key):
                raise invalid(
                    f"hf-overrides has the key {limits.escaped(key, 40)!r}, which is not a plain name"
                )
            _check_keys(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_keys(inner, depth + 1)


def _with_options(
    given: tuple[str, ...] | None, old: tuple[str, ...], options: dict[str, str]
) -> tuple[str, ...] | None:
    """The flags with these options in the place of earlier ones; None when nothing was said about flags."""
    if not options:
        return given
    kept: list[str] = []
    words = iter(given if given is not None else old)
    for word in words:
        if word in options:
            next(words, None)
        elif word.partition("=")[0] not in options:
            kept.append(word)
    return (*kept, *(word for option in options.items() for word in option))


def _keep_alive(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_go_duration(text)
    except ValueError as error:
        raise invalid(str(error), param="keep_alive") from None


async def _preload(admission: Admission) -> None:
    try:
        # Not through an open gate: it may be that of the engine which a new configuration is just ending.
        await admission.enter(skip_gate=True)
    except KernelError as error:
        _log.info("a preload was refused: %s", error)
    finally:
        admission.leave()
