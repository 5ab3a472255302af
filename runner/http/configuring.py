"""`/engines/_configure`: how a model is loaded from now on. Survives restarts; merges, never resets.

What a client leaves out stays as it was. A model in use answers 409 and names who uses it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
from aiohttp import web
from greenroom.actors.facts import Mode, Model
from greenroom.actors.messages import SCHEDULER, Configure
from greenroom.actors.scheduler_state import ModelConfigState, config_key
from greenroom.runner.backends.flags import refusal
from greenroom.runner.http.bodies import read_json
from greenroom.runner.http.door import Door, shown_name
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.go_text import go_duration, parse_go_duration
from greenroom.runner.http.headers import request_id_of

DEFAULT_BACKEND = "llama.cpp"
_MODES: tuple[Mode, ...] = ("completion", "embedding", "reranking")
_CONTEXT_FLAGS = ("--ctx-size", "-c", "--max-model-len")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class LlamaCppBody(msgspec.Struct, rename="kebab"):
    """What only llama.cpp understands."""

    reasoning_budget: int | None = None


class VllmBody(msgspec.Struct, rename="kebab"):
    """What only vllm understands."""

    hf_overrides: dict[str, Any] | None = None
    gpu_memory_utilization: float | None = None


class ConfigureBody(msgspec.Struct, rename="kebab"):
    """`POST /engines/_configure`; what is absent stays as it is."""

    model: str = ""
    mode: Mode | None = None
    context_size: int | None = None
    runtime_flags: tuple[str, ...] = ()
    raw_runtime_flags: str = ""
    keep_alive: str | None = msgspec.field(name="keep_alive", default=None)
    speculative: dict[str, Any] | None = None
    llamacpp: LlamaCppBody | None = None
    vllm: VllmBody | None = None


class Configuring:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def configure(self, request: web.Request) -> web.Response:
        """Change how a model is loaded, then load it in the background."""
        door = self._door
        backend = request.match_info.get("backend", "")
        if backend:
            door.backend(backend)
        body = await read_json(request, door.backstage.settings.max_body, ConfigureBody)
        if not body.model:
            raise HttpRefusal(400, "invalid_request", "invalid request: model is required")
        if (body.speculative or {}).get("draft_model"):
            raise HttpRefusal(
                400, "invalid_request", "invalid request: draft models are not offered; leave speculative out"
            )
        model = door.model(body.model)
        flags = _flags(body)
        if flags:
            self._check(flags, model, backend)
        mode: Mode = body.mode or ("embedding" if flags and "--embeddings" in flags else "completion")
        old = door.configs().get(config_key(model.id, mode), ModelConfigState())
        configure = Configure(
            model_id=model.id,
            model_ref=body.model,
            mode=mode,
            context_size=_context(body, flags),
            flags=_with_options(flags, old.flags or (), _options(body, model)),
            keep_alive=_keep_alive(body.keep_alive),
        )
        await door.backstage.system.ask(SCHEDULER, configure, cause=request_id_of(request))
        door.preload(model, body.model, mode, backend)
        return web.Response(status=202)

    async def configurations(self, request: web.Request) -> web.Response:
        """What was configured, for one model or for all that are here."""
        backstage = self._door.backstage
        configs = self._door.configs()
        wanted = request.query.get("model", "")
        models = [self._door.model(wanted)] if wanted else list(backstage.models())
        entries = []
        for model in models:
            for mode in _MODES:
                config = configs.get(config_key(model.id, mode))
                if config is not None:
                    entries.append(
                        {
                            "Backend": request.match_info.get("backend", DEFAULT_BACKEND),
                            "Model": shown_name(model),
                            "ModelID": model.id,
                            "Mode": mode,
                            "Config": _config(config),
                        }
                    )
        return web.json_response(entries)

    def _check(self, flags: tuple[str, ...], model: Model, backend: str) -> None:
        """Raise HttpRefusal unless a backend that could serve the model allows them."""
        readers = [one for one in self._door.backstage.backends.values() if model.format in one.formats]
        reasons = [
            refusal(flags, one.allowed_flags, one.name) for one in readers if backend in ("", one.name)
        ]
        if all(reasons):
            reason = reasons[0] if reasons else f"no backend of that name reads {model.format}"
            raise HttpRefusal(500, "flag_refused", reason)


def _config(config: ModelConfigState) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if config.context_size is not None:
        fields["context-size"] = config.context_size
    if config.flags:
        fields["runtime-flags"] = list(config.flags)
    if config.keep_alive is not None:
        fields["keep_alive"] = go_duration(config.keep_alive)
    return fields


def _flags(body: ConfigureBody) -> tuple[str, ...] | None:
    if body.runtime_flags:
        return body.runtime_flags
    if not body.raw_runtime_flags:
        return None
    try:
        return tuple(shlex.split(body.raw_runtime_flags))
    except ValueError as error:
        raise HttpRefusal(500, "flag_refused", f"invalid runtime flags: {error}") from None


def _context(body: ConfigureBody, flags: Sequence[str] | None) -> int | None:
    """Tokens; -1 for as many as the model can take. A flag that says the same counts in the ledger too."""
    if body.context_size is not None:
        return body.context_size if body.context_size > 0 or body.context_size == -1 else None
    words = [word for flag in flags or () for word in flag.split("=", 1)]
    for name, value in pairwise(words):
        if name in _CONTEXT_FLAGS and value.isdigit():
            return int(value) or -1
    return None


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
            if not 0 <= share <= 1:
                raise _invalid("gpu-memory-utilization is a share, from 0 to 1")
            options["--gpu-memory-utilization"] = f"{share:g}"
        if overrides:
            _only("vllm", "safetensors", model)
            _check_keys(overrides)
            options["--hf-overrides"] = json.dumps(overrides)
    return options


def _only(section: str, reads: str, model: Model) -> None:
    if not model.format.startswith(reads):
        raise _invalid(f"{section} is about {reads} models; {shown_name(model)} is {model.format}")


def _check_keys(value: Any) -> None:
    """Keys become attributes of Python objects: nothing but plain names, however deep they lie."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not _KEY.fullmatch(key):
                raise _invalid(f"hf-overrides has the key {key[:40]!r}, which is no plain name")
            _check_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_keys(inner)


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
        raise HttpRefusal(400, "invalid_request", f"invalid request: {error}") from None


def _invalid(what: str) -> HttpRefusal:
    return HttpRefusal(400, "invalid_request", f"invalid request: {what}")
