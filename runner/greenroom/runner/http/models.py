"""The store over HTTP, as in Docker Model Runner's contract, with verify, prune and disk usage."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from greenroom.actors.installer.messages import DropFetched
from greenroom.actors.kernel.errors import KernelError, Refusal, Refused
from greenroom.actors.library.messages import (
    NoteDamage,
    Prune,
    Removed,
    RemoveModel,
    RepackageModel,
    TagModel,
)
from greenroom.actors.library.pulls import refusal_of
from greenroom.actors.limits import CONTEXT, Name
from greenroom.actors.scheduler.backend_choice import Install, Use, choose
from greenroom.actors.scheduler.ledger import Capacity, reservation_for
from greenroom.actors.scheduler.messages import PlacementReading, ReadPlacement
from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import Engine, Mode, Model, Progress
from greenroom.runner.daemon import Greenroom
from greenroom.runner.disk_usage import measure
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.errors import JobFailed
from greenroom.runner.http.bodies import is_true, read_json
from greenroom.runner.http.configuring import DEFAULT_BACKEND, MODES
from greenroom.runner.http.context import Context
from greenroom.runner.http.effective import effective
from greenroom.runner.http.errors import DOCKER_CLI, VERSION_HEADER, HttpRefusal, json_response, wants_json
from greenroom.runner.http.other_uses import refuse_other_uses
from greenroom.runner.http.port import AnyResponse, Request, Response
from greenroom.runner.http.progress_stream import stream_job
from greenroom.runner.http.remote_models import find_remote_model
from greenroom.runner.http.transfers import TransferLines, as_tag, canonical
from greenroom.runner.models.description import described, described_remote, files_of, template_of
from greenroom.runner.models.gguf import read_header
from greenroom.runner.models.references import (
    BadReference,
    Reference,
    familiar,
    is_id,
    listed_names,
    shown,
    shown_name,
)
from greenroom.runner.models.store import ModelStore
from greenroom.runner.placement_text import would_put
from greenroom.runner.remotes.asking import AGENT
from greenroom.runner.remotes.model import RemoteModel
from greenroom.runner.speeds import estimated, of_device, of_memory
from greenroom.runner.threads import Cancel, in_thread
from greenroom.runner.units import size_text

_REMOTES = 8
"""Questions to sources that are asked at once."""


class RepackageBody(msgspec.Struct):
    """`POST /models/{reference}/repackage`."""

    target: Name = ""
    context_size: Annotated[int, Meta(ge=1, le=CONTEXT)] | None = None


FREED = "X-Freed-Bytes"
KEPT = "X-Kept-Bytes"
"""Bytes of a removed model that stay, since other models or programs share them."""


class Models:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._remotes = asyncio.Semaphore(_REMOTES)
        self._verifying = asyncio.Lock()
        """One at a time: it is the disk that takes the time."""

    async def all(self, request: Request) -> Response:
        models = self._context.greenroom.models()
        found: list[dict[str, Any]] = [{**described(model), "bytes": model.size} for model in models]
        if DOCKER_CLI in request.headers.get("User-Agent", ""):
            # `list MODEL` of Docker's command line looks for names without the registry.
            for one in found:
                if "tags" in one:
                    one["tags"] = [tag.removeprefix("docker.io/") for tag in one["tags"]]
        return json_response(found)

    async def one(self, request: Request) -> AnyResponse:
        """One model, by any of its names: what it is, of which files, and what would serve it."""
        name = request.params["reference"]
        if is_true(request, "remote"):
            return await self._remote(name)
        model = self._context.greenroom.model(name)
        store = self._context.greenroom.store
        files, config = await in_thread(lambda: files_of(store, model.id))
        try:
            template = await in_thread(lambda: template_of(store, model.id))
        except JobFailed:
            template = None  # damaged: the files say so
        reads = ["text", *(model.reads or ())]
        more = {
            "source": model.source,
            "bytes": model.size,
            "reads": reads,
            "files": files,
            "chat_template": template,
        }
        # In a thread: what engines may use depends on limits that are read from files.
        serving = await asyncio.to_thread(prospects, self._context, model)
        greenroom = self._context.greenroom
        settings = effective(model, greenroom.configs(), greenroom.engines(), greenroom.settings)
        more |= {"serving": serving, "settings": msgspec.to_builtins(settings)}
        if model.has_defaults:
            with contextlib.suppress(JobFailed):  # damaged, too
                more["defaults"] = msgspec.to_builtins(await self._context.defaults.of(model))
        return json_response(described(model, config) | more)

    async def _remote(self, name: str) -> Response:
        """What a source has under a name; what is stored is not looked at."""
        cancel = Cancel()
        look_up = self._context.greenroom.puller.look_up
        try:
            reference = canonical(name)
            async with self._remotes:
                published = await in_thread(lambda: look_up(reference, cancel))
        finally:
            cancel.set()
        return json_response(described_remote(published))

    async def tag(self, request: Request) -> Response:
        repository, tag = request.query.get("repo", ""), request.query.get("tag", "")
        if not repository or not tag:
            raise HttpRefusal(400, "invalid_request", "missing repo or tag query parameter")
        model = self._context.greenroom.model(request.params["reference"])
        target = f"{repository}:{tag}"
        await self._context.greenroom.system.ask(
            TagModel(model_id=model.id, tag=as_tag(target)), cause=request.id
        )
        return json_response(
            {"message": f'Model tagged successfully with "{target}"', "target": target}, status=201
        )

    async def repackage(self, request: Request) -> Response:
        """Store a model once more with another configuration; its files are shared."""
        body = await read_json(request, RepackageBody, aliases={"context-size": "context_size"})
        if not body.target:
            raise HttpRefusal(400, "invalid_request", "target is required")
        name = request.params["reference"]
        model = self._context.greenroom.model(name)
        repackage = RepackageModel(model_id=model.id, tag=as_tag(body.target), context_size=body.context_size)
        await self._context.greenroom.system.ask(repackage, cause=request.id)
        return json_response(
            {
                "message": f'Model repackaged successfully as "{body.target}"',
                "source": name,
                "target": body.target,
            },
            status=201,
        )

    async def unknown_action(self, request: Request) -> Response:
        action = shown(request.params["action"])
        raise HttpRefusal(404, "no_such_path", f'unknown action "{action}"')

    async def remove(self, request: Request) -> Response:
        """Remove a tag, and with its last one the model; by id, the model. 409 while it is in use."""
        name = request.params["reference"]
        model = self._context.greenroom.model(name)
        force = is_true(request, "force")
        remove = RemoveModel(model_id=model.id, tag=tag_meant(name, model), force=force)
        removed = await self._context.greenroom.system.ask(remove, cause=request.id)
        if not isinstance(removed, Removed):
            return json_response([{"Untagged": remove.tag}])
        gone = [{"Untagged": tag} for tag in removed.untagged]
        gone += [{"Deleted": model_id} for model_id in removed.deleted]
        # The rows are Docker's, which have no place for it.
        kept = max(0, model.size - removed.freed)
        return json_response(gone, headers={FREED: str(removed.freed), KEPT: str(kept)})

    async def purge(self, request: Request) -> Response:
        """Remove all models, and what no model needs. Those in use stay, unless it is forced."""
        force = is_true(request, "force")
        system = self._context.greenroom.system
        kept: list[KernelError] = []
        for model in self._context.greenroom.models():
            remove = RemoveModel(model_id=model.id, all_tags=True, force=force)
            try:
                await system.ask(remove, cause=request.id)
            except Refused as refused:
                # Another client may have removed it a moment ago.
                if refused.refusal.kind != "not_found":
                    kept.append(refused)
        await system.ask(Prune())
        # Also of models that have gone in another way.
        left = {one.id for one in self._context.greenroom.models()}
        await in_thread(lambda: self._context.greenroom.conversations.sweep(left))
        if kept:
            raise kept[0]
        return Response()

    async def df(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        """Bytes on disk, each once."""
        greenroom = self._context.greenroom
        blobs = await in_thread(greenroom.store.blobs)
        usage = await in_thread(lambda: measure(greenroom.home, blobs))
        return json_response(
            {
                "models_disk_usage": usage.models,
                "default_backend_disk_usage": usage.backends.get(DEFAULT_BACKEND, 0),
                "backends_disk_usage": usage.backends,
                "models_shared_disk_usage": usage.models_shared,
                "unfinished_disk_usage": usage.unfinished,
                "cache_disk_usage": usage.cache,
                "conversations_disk_usage": usage.conversations,
                "engines_disk_usage": usage.engines,
                "journal_disk_usage": usage.journal,
                "other_disk_usage": usage.other,
                "total_disk_usage": usage.total,
            }
        )

    async def prune(self, request: Request) -> Response:
        """Remove what no model and no installation needs.

        If asked for, models without a name too, unless they are in use. `kept_for` names backends that are
        being installed: what was fetched for installations stays until that has ended.
        """
        body = await read_json(request, PruneBody)
        system = self._context.greenroom.system
        deleted: list[str] = []
        freed = 0
        for model in self._context.greenroom.models() if body.untagged else ():
            if model.tags:
                continue
            try:
                removed = await system.ask(RemoveModel(model_id=model.id), cause=request.id)
            except Refused:
                continue
            if isinstance(removed, Removed):
                deleted += removed.deleted
                freed += removed.freed
        pruned = await system.ask(Prune())
        dropped = await system.ask(DropFetched())
        return json_response(
            {"deleted": deleted, "freed": freed + pruned.freed + dropped.freed, "kept_for": dropped.kept_for}
        )

    async def verify(self, request: Request) -> AnyResponse:
        """Read every byte of a model. A damaged one counts as gone, and the next pull repairs it."""
        model = self._context.greenroom.model(request.params["reference"])
        job = f"verify/{model.id}"
        lines = TransferLines(job, "verify", raw=wants_json(request))
        board, cancel = self._context.greenroom.board, threading.Event()
        try:
            return await stream_job(request, board, job, self._verified(request, model, job, cancel), lines)
        finally:
            cancel.set()

    async def _verified(self, request: Request, model: Model, job: str, cancel: threading.Event) -> str:
        greenroom = self._context.greenroom
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            greenroom.board.publish(Progress(job=job, phase="verifying", done=done, total=model.size))

        def read() -> tuple[str, ...]:
            return greenroom.store.verify(model.id, cancel=cancel, count=count, condemn=True)

        try:
            async with self._verifying:
                problems = await in_thread(read)
        except JobFailed as failed:
            raise Refused(refusal_of(failed.failure)) from None
        finally:
            greenroom.board.clear(job)
        if not problems:
            return f"{familiar(shown_name(model))} is whole: every byte is what it was when it arrived"
        reason = " ".join(problems)
        damage = NoteDamage(model_id=model.id, reason=reason)
        await greenroom.system.ask(damage, cause=request.id)
        name = familiar(shown_name(model))
        raise Refused(
            Refusal(
                code="model_damaged",
                message=f"{name} is damaged: {reason}",
                advice=f"To download the missing data: greenroom pull {name}",
            )
        )


def tag_meant(name: str, model: Model) -> str:
    """The tag a name stands for; empty when it names the model itself."""
    if is_id(name) or "@sha256:" in name:
        return ""
    try:
        tag = Reference.parse(name).stored_tag
    except BadReference:
        return ""
    # A partial name stands for the model's only tag.
    return tag if tag in model.tags or len(model.tags) != 1 else model.tags[0]


class PruneBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /models/prune`; may be left out."""

    untagged: bool = False
    """Also models that have no name any more."""


_PLACED_WITHIN = 2.0
"""Seconds after which `inspect` tells what it knows without the scheduler."""


def prospects(context: Context, model: Model) -> list[dict[str, Any]]:
    """For each mode it is made or configured for: which backend would serve it, and the memory that needs."""
    greenroom = context.greenroom
    statuses = {one.name: one for one in greenroom.statuses()}
    configs = context.greenroom.configs()
    found = []
    for mode in MODES:
        if not any(model.format in one.formats and mode in one.modes for one in greenroom.facts):
            continue
        choice = choose(model, mode, "", greenroom.settings.install_policy, greenroom.facts, statuses)
        config = configs.get(config_key(model.id, mode), ModelConfigState())
        backend = greenroom.backends.get("" if isinstance(choice, Refusal) else choice.backend)
        pools_by_header = backend is not None and backend.dialect.pools_by_header
        try:
            refuse_other_uses(model, mode, model.id, config.flags or (), pools_by_header=pools_by_header)
        except HttpRefusal:
            continue
        size = model.context_size if config.context_size is None else config.context_size
        memory = _memory(context, model, choice, size)
        placed = _placed(context, model, mode, choice)
        told = _conversations(context.greenroom, model, mode, choice, config)
        found.append({"mode": mode, **_choice(choice), **memory, **placed, **told})
    return found


def _choice(choice: Use | Install | Refusal) -> dict[str, Any]:
    if isinstance(choice, Use):
        return {"backend": choice.backend, "installed": True, "reasons": list(choice.reasons)}
    if isinstance(choice, Install):
        return {"backend": choice.backend, "installed": False, "reasons": [choice.reason]}
    backend = choice.subject or None
    return {"backend": backend, "installed": False, "reasons": [choice.sentence()]}


def _conversations(
    greenroom: Greenroom, model: Model, mode: Mode, choice: Use | Install | Refusal, config: ModelConfigState
) -> dict[str, Any]:
    """Whether its conversations outlive its engine; nothing where there is no backend or no conversation."""
    backend = greenroom.backends.get("" if isinstance(choice, Refusal) else choice.backend)
    if mode != "completion" or backend is None:
        return {}
    asked = greenroom.settings.prompt_cache if config.prompt_cache is None else config.prompt_cache
    prompt_cache = None if asked == -1 else asked
    no_restore: str | None = ""
    in_vain = ""
    if isinstance(choice, Use):
        no_restore = greenroom.builder.no_restore(
            greenroom.installation(choice.backend, choice.installation_id)
        )
        in_vain = greenroom.conversation_saver.costs.in_vain(model.id, choice.installation_id)
    for engine in greenroom.engines():
        if (engine.spec.model_id, engine.spec.mode, engine.state) == (model.id, mode, "ready"):
            prompt_cache = engine.spec.prompt_cache or 0
    why = greenroom.conversations.off or backend.why_not_saved(mode, no_restore, prompt_cache) or in_vain
    untried = f"whether this {backend.name} can go on with them has not been tried"
    reason = why or (untried if no_restore is None else "")
    return {"conversations": {"saved": not why, "reason": reason}}


def _placed(context: Context, model: Model, mode: Mode, choice: Use | Install | Refusal) -> dict[str, Any]:
    """Where its layers would lie; nothing if that is not known."""
    if not isinstance(choice, Use):
        return {}
    ask = ReadPlacement(
        model_id=model.id, backend=choice.backend, installation_id=choice.installation_id, mode=mode
    )
    try:
        told = context.greenroom.system.ask(ask).get(timeout=_PLACED_WITHIN)
    except (KernelError, TimeoutError):
        return {}
    names = context.greenroom.device_names()
    speed = _speed(context, model, mode, choice, told)
    if not told.layers or not names:
        return speed
    return {
        **speed,
        "layers": told.layers,
        "placement": would_put(told.layers, told.placement, names),
        "placement_reason": told.reason,
        "context": told.context,
        **({"context_for_all": told.context_for_all} if told.context_for_all else {}),
    }


def _answer_speed(greenroom: Greenroom, engine: Engine) -> float:
    """Tokens a second at which an engine answers, or has answered; 0.0 if unknown."""
    if engine.exit is not None:
        return engine.exit.speed
    folder = EngineFolder(greenroom.home / "engines" / engine.spec.engine_id)
    return greenroom.backends[engine.spec.backend].answer_speed(folder.read_log())


def _speed(context: Context, model: Model, mode: Mode, choice: Use, told: PlacementReading) -> dict[str, Any]:
    """Tokens a second of an answer: as measured where it has run like this, else estimated; else nothing."""
    if mode != "completion":
        return {}
    greenroom, placed = context.greenroom, sum(one.layers for one in told.placement)
    for engine in sorted(greenroom.engines(), key=lambda one: one.since, reverse=True):
        spec = engine.spec
        ran = (spec.model_id, spec.mode, spec.backend, spec.installation_id, spec.on_devices)
        if ran == (model.id, mode, choice.backend, choice.installation_id, placed) and (
            speed := _answer_speed(greenroom, engine)
        ):
            return {"speed": speed, "speed_is": "measured"}
    if not told.layers or model.layers is None or _is_sparse(greenroom.store, model):
        return {}
    bandwidths = {one.id: of_device(one) for one in greenroom.devices.graphics.usable}
    speed = estimated(model.layers, told.placement, {**bandwidths, "": of_memory()})
    return {"speed": speed, "speed_is": "estimated"} if speed else {}


def _is_sparse(store: ModelStore, model: Model) -> bool:
    """Whether a token needs only some of its weights, or that cannot be told."""
    try:
        header = read_header(store.open_model(model.id).path)
    except (JobFailed, OSError):
        return True
    return any(name.endswith(".expert_count") and value for name, value in header.values.items())


def _memory(context: Context, model: Model, choice: Use | Install | Refusal, size: int) -> dict[str, Any]:
    name = choice.subject if isinstance(choice, Refusal) else choice.backend
    overheads = [one.overhead for one in context.greenroom.facts if one.name == name]
    if not overheads:
        return {}
    # One slot is the least that it is loaded with.
    needed = reservation_for(model, size, overheads[0], Capacity()).total
    budget = context.greenroom.memory.budget_for(name)
    fields: dict[str, Any] = {"memory": needed, "memory_budget": budget, "fits": needed <= budget}
    return fields | ({"context_size": size} if size > 0 else {})


# as OpenAI's clients list them


class Listing:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def all(self, request: Request) -> Response:
        """Every name under which a model can be asked for."""
        greenroom = self._context.greenroom
        configs = greenroom.configs()
        named = [(model, name) for model in greenroom.models() for name in listed_names(model)]
        if request.headers.get("User-Agent", "").startswith(AGENT):
            # Another Greenroom, which may be a remote backend of ours: it puts its own name before these.
            named = [(model, familiar(name)) for model, name in named]
        else:
            named += [(model, model.id) for model in greenroom.remotes.models()]
        if VERSION_HEADER in request.headers:
            found = [_anthropic_entry(model, name, configs) for model, name in named]
            ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {}
            return json_response(
                {"data": found, "has_more": False, "first_id": None, "last_id": None, **ends}
            )
        entries = [_entry(model, name, configs) for model, name in named]
        return json_response({"object": "list", "data": entries})

    async def one(self, request: Request) -> Response:
        name, greenroom = request.params["name"], self._context.greenroom
        there = greenroom.remotes.named(name)
        model = greenroom.model(name) if there is None else await find_remote_model(*there, name)
        entry = _anthropic_entry if VERSION_HEADER in request.headers else _entry
        return json_response(entry(model, name, greenroom.configs()))


def _anthropic_entry(model: Model, name: str, configs: Mapping[str, ModelConfigState]) -> dict[str, object]:
    context = _context_size(model, configs) or None
    created = datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = {"created_at": created, "lifecycle": "active", "max_input_tokens": context, "max_tokens": context}
    unknown = dict.fromkeys(("capabilities", "deprecated_at", "line", "retires_at"))
    return {"type": "model", "id": name, "display_name": name, **about, **unknown}


def _context_size(model: Model, configs: Mapping[str, ModelConfigState]) -> int:
    config = configs.get(config_key(model.id, "completion"), ModelConfigState())
    context = model.context_size if config.context_size is None else config.context_size
    return context if context > 0 else model.context_length


def _entry(model: Model, name: str, configs: Mapping[str, ModelConfigState]) -> dict[str, object]:
    about = {
        "context_window": _context_size(model, configs),
        "architecture": model.architecture,
        "parameters": model.parameters,
        "quantization": model.quantization,
        "size": size_text(model.size) if model.size else "",
        "reads": ["text", *model.reads] if model.reads else [],
    }
    entry: dict[str, object] = {
        "id": name,
        "object": "model",
        "created": int(model.created),
        "owned_by": model.remote if isinstance(model, RemoteModel) else "docker",
    }
    known = {name: value for name, value in about.items() if value}
    return {**entry, "dmr": known} if known else entry
