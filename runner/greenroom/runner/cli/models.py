"""Commands about models in the store: list, inspect, search, tag, rm, verify, prune."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import click

from greenroom.runner import exit_codes
from greenroom.runner.cli.completion import ModelName
from greenroom.runner.cli.main import Subcommands, settings_of
from greenroom.runner.cli.output import announce, say, style, table, terminal_width
from greenroom.runner.cli.problem import Problem
from greenroom.runner.cli.remotes import remotes_of
from greenroom.runner.client.daemons import client_for
from greenroom.runner.client.errors import GreenroomError, RequestRefused
from greenroom.runner.client.http_client import HttpClient, path_of
from greenroom.runner.units import format_duration, format_size, parse_size

_LISTED = (
    "MODEL NAME",
    "PARAMETERS",
    "QUANTIZATION",
    "ARCHITECTURE",
    "MODEL ID",
    "CREATED",
    "CONTEXT",
    "SIZE",
)
_LISTED_SPARE = ("CONTEXT", "ARCHITECTURE", "QUANTIZATION", "PARAMETERS")


@click.command("list")
@click.argument("model", required=False, type=ModelName())
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.pass_context
def list_command(ctx: click.Context, model: str | None, as_json: bool, quiet: bool) -> int:
    """List the models in the store, or only MODEL."""
    from greenroom.runner.models.references import familiar

    client = client_for(settings_of(ctx))
    models = [*(client.get("/models") or []), *_elsewhere(client)]
    if model:
        wanted = familiar(model)
        models = [
            each
            for each in models
            if wanted in _names_of(each)
            or wanted in {name.rpartition("/")[2].partition(":")[0] for name in _names_of(each)}
            or each["id"].startswith((model, f"sha256:{model}"))
        ]
    if as_json:
        click.echo(json.dumps(models, indent=4, ensure_ascii=False))
    elif quiet:
        click.echo("\n".join(_short_id(each) or each["id"] for each in models))
    elif not models:
        announce(
            f"There is no model {model} in the store." if model else "There are no models in the store yet."
        )
        announce(f"Pull one: greenroom pull {model or 'smollm2'}")
    else:
        contexts = _contexts(client)
        rows = [row for each in models for row in _model_rows(each, contexts)]
        listed = sorted(rows, key=lambda row: row[0].lower())
        click.echo(table(_LISTED, listed, spare=_LISTED_SPARE, width=terminal_width()))
    return exit_codes.FAILED if model and not models else exit_codes.OK


def _elsewhere(client: HttpClient) -> list[dict[str, Any]]:
    """The models of remote backends."""
    return [
        {"id": f"{one['name']}/{model}", "tags": [f"{one['name']}/{model}"], "remote": one["name"]}
        for one in remotes_of(client)
        if one["state"] == "answers"
        for model in one["models"]
    ]


def _names_of(model: dict[str, Any]) -> list[str]:
    from greenroom.runner.models.references import familiar

    return [familiar(tag) for tag in model.get("tags") or ()]


def _contexts(client: HttpClient) -> dict[str, int]:
    """Tag or id → the tokens of context that a model is loaded with, as it is configured now."""
    listed = (client.get("/v1/models") or {}).get("data") or ()
    return {str(one["id"]): int((one.get("dmr") or {}).get("context_window") or 0) for one in listed}


def _model_rows(model: dict[str, Any], contexts: Mapping[str, int]) -> list[tuple[str, ...]]:
    config = model.get("config") or {}
    context = next((contexts[one] for one in (*(model.get("tags") or ()), model["id"]) if one in contexts), 0)
    created = float(model.get("created") or 0)
    more = (
        str(config.get("parameters") or ""),
        str(config.get("quantization") or ""),
        str(config.get("architecture") or ""),
        _short_id(model),
        f"at {model['remote']}"
        if "remote" in model
        else f"{format_duration(max(0.0, time.time() - created))} ago"
        if created
        else "",
        str(context or ""),
        _size(config),
    )
    return [(name, *more) for name in _names_of(model) or ["<none>"]]


def _size(config: Mapping[str, Any]) -> str:
    """Docker Model Runner's text is binary (`93.81MiB`); ours is decimal, as everywhere."""
    text = str(config.get("size") or "")
    try:
        return format_size(parse_size(text)) if text else ""
    except ValueError:
        return text


def _short_id(model: dict[str, Any]) -> str:
    return "" if "remote" in model else str(model["id"])[7:19]


_FACTS = (
    ("format", "Format"),
    ("architecture", "Architecture"),
    ("parameters", "Parameters"),
    ("quantization", "Quantization"),
    ("context_size", "Context"),
)


@click.command("inspect")
@click.argument("model", type=ModelName(catalogue=True))
@click.option("-r", "--remote", is_flag=True, help="Ask its source instead of the store.")
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON.")
@click.option("--openai", is_flag=True, help="Print the OpenAI API's answer as JSON.")
@click.pass_context
def inspect_command(ctx: click.Context, model: str, remote: bool, as_json: bool, openai: bool) -> None:
    """Show MODEL's details, its files, which backend would serve it and how much memory it needs."""
    client = client_for(settings_of(ctx))
    if openai:
        found = client.get(path_of("v1/models", model))
    elif remote:
        found = client.get(f"{path_of('models', model)}?remote=true", timeout=None)
    else:
        found = client.get(path_of("models", model))
    if as_json or openai:
        click.echo(json.dumps(found, indent=4, ensure_ascii=False))
    else:
        say("\n".join(_inspected(found, terminal_width())), indent=15)


def _inspected(model: dict[str, Any], width: int | None) -> list[str]:
    from greenroom.runner.models.references import familiar

    config = model.get("config") or {}
    model_id = str(model.get("id") or "(assigned when it is pulled)")
    facts = {
        # Where it does not fit, as `list` has it.
        "Model": model_id[7:19] if "id" in model and width is not None and width < 86 else model_id,
        "Tags": ", ".join(familiar(tag) for tag in model.get("tags") or ()),
        "Source": str(model.get("source") or ""),
        "Created": _moment(float(model.get("created") or 0)),
        **{label: str(config.get(name) or "") for name, label in _FACTS},
        "Size": format_size(float(model["bytes"])) if model.get("bytes") else str(config.get("size") or ""),
    }
    if len(reads := model.get("reads") or ()) > 1:
        facts["Reads"] = ", ".join(reads)
    lines = [f"{label + ':':<14} {value}" for label, value in facts.items() if value]
    if "chat_template" in model:
        lines.append(f"{'Chat template:':<14} {_template(model['chat_template'])}")
    lines += _defaults(model.get("defaults") or {})
    files = [
        f"  {one['name'] or one['digest'][7:19]} ({format_size(one['size'])})"
        for one in model.get("files") or ()
    ]
    if files:
        lines += ["", "Files:", *files]
    others = [f"  {name} ({format_size(size)})" for name, size in (model.get("quantizations") or {}).items()]
    if others:
        lines += ["", "Quantizations:", *others]
    serving = [line for one in model.get("serving") or () for line in _served(one)]
    lines += ["", "Served by:", *serving] if serving else []
    if rows := model.get("settings"):
        from greenroom.runner.cli.configure import shown

        lines += ["", f"Loaded with (greenroom configure {_named(model)}):", shown(rows)]
    return lines


def _defaults(defaults: Mapping[str, Any]) -> Iterator[str]:
    """What a created model says for requests that do not."""
    if system := defaults.get("system"):
        yield f"{'System prompt:':<14} {system}"
    if parameters := defaults.get("parameters"):
        told = ", ".join(f"{name} {json.dumps(value)}" for name, value in parameters.items())
        yield f"{'Parameters:':<14} {told}"
    for message in defaults.get("messages") or ():
        yield f"{'Message:':<14} {message['role']}: {message['content']}"


def _named(model: Mapping[str, Any]) -> str:
    from greenroom.runner.models.references import familiar

    names = [familiar(tag) for tag in model.get("tags") or ()]
    return min(names, key=len, default=str(model.get("id") or "")[7:19])


def _template(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none (the backend's default is used)"
    names = ", ".join(found.get("names") or ())
    return f"{found['file']} ({names})" if names else str(found["file"])


def _served(mode: dict[str, Any]) -> list[str]:
    backend = str(mode.get("backend") or "nothing")
    state = "" if mode.get("installed") else " (not installed)"
    memory = ""
    if mode.get("memory"):
        room = format_size(float(mode["memory_budget"]))
        verdict = f"of {room}" if mode.get("fits") else f"more than the {room} available to engines"
        memory = f", needs at least {format_size(float(mode['memory']))} of memory ({verdict})"
    placed = []
    speed = f"about {float(mode['speed']):.2g} tokens/s ({mode['speed_is']})" if mode.get("speed") else ""
    if mode.get("placement"):
        placed.append(f"    would put {mode['placement']}{': ' if speed else ''}{speed}")
    elif speed:
        placed.append(f"    {speed}")
    if mode.get("context_for_all"):
        size = f"a context of {mode['context_for_all']} instead of {mode['context']}"
        placed.append(f"    {size} would put all layers there")
    return [
        f"  {mode['mode']}: {backend}{state}{memory}",
        *placed,
        *(f"    {one}" for one in mode.get("reasons") or ()),
        *_conversations(mode.get("conversations") or {}),
    ]


def _conversations(told: Mapping[str, Any]) -> Iterator[str]:
    """Whether they outlive the engine, in one line."""
    if told:
        what = "outlive the engine" if told["saved"] else "end with the engine"
        reason = f": {told['reason']}" if told["reason"] else ""
        yield f"    its conversations {what}{reason}"


def _moment(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds") if seconds else ""


_WIDTH = 60


@click.command("search")
@click.argument("query")
@click.option(
    "--limit", type=click.IntRange(1, 100), default=10, show_default=True, help="Results from each source."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def search_command(ctx: click.Context, query: str, limit: int, as_json: bool) -> int:
    """Search for QUERY in the short names, on Docker Hub and on Hugging Face. Needs no daemon.

    From Hugging Face, only GGUF and safetensors models are shown. HF_ENDPOINT sets another hub.
    """
    from greenroom.runner.models.search import search
    from greenroom.runner.models.short_names import Catalogue

    results = search(query, limit=limit, catalogue=Catalogue.load(settings_of(ctx).models), say=announce)
    for sentence in results.silent:
        announce(sentence)
    if as_json:
        models = [
            {
                "name": one.name,
                "source": one.source,
                "description": one.description,
                "formats": list(one.formats),
                "downloads": one.downloads,
                "likes": one.likes,
            }
            for one in results.models
        ]
        click.echo(json.dumps(models, indent=4, ensure_ascii=False))
    elif results.models:
        rows = [
            (
                one.name,
                one.source,
                _short(one.description or ", ".join(one.formats)),
                str(one.downloads or ""),
            )
            for one in results.models
        ]
        click.echo(table(("NAME", "SOURCE", "DESCRIPTION", "DOWNLOADS"), rows, width=terminal_width()))
    else:
        announce(f"No models found for {query!r}.")
    return exit_codes.FAILED if results.silent and not results.models else exit_codes.OK


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


@click.command("tag")
@click.argument("source", type=ModelName())
@click.argument("target")
@click.pass_context
def tag_command(ctx: click.Context, source: str, target: str) -> None:
    """Give the model SOURCE the name TARGET as well. If another model has that name, it loses it."""
    give_tag(client_for(settings_of(ctx)), source, target)
    click.echo(f'Model "{source}" tagged successfully with "{target}"')


def give_tag(client: HttpClient, source: str, target: str) -> None:
    """Have the daemon do it. Raises Problem when it cannot be."""
    repository, tag = split(target)
    client.post(f"{path_of('models', source, 'tag')}?{urlencode({'repo': repository, 'tag': tag})}")


def split(target: str) -> tuple[str, str]:
    """The canonical repository and the tag of a name. Raises Problem when it is none that a tag can have."""
    from greenroom.runner import exit_codes
    from greenroom.runner.models.references import BadReference, Reference

    try:
        reference = Reference.parse(target)
    except BadReference as error:
        raise Problem(str(error), code=exit_codes.USAGE) from error
    if reference.scheme not in ("oci", "huggingface") or reference.digest:
        raise Problem(
            f"{target} cannot be a tag.",
            "Write NAME, NAME:TAG or REGISTRY/YOU/NAME:TAG.",
            code=exit_codes.USAGE,
        )
    return reference.name, reference.tag


@click.command("rm")
@click.argument("models", nargs=-1, type=ModelName())
@click.option("-f", "--force", is_flag=True, help="Also remove models that are in use or have several names.")
@click.option("--all", "everything", is_flag=True, help="Remove all models.")
@click.pass_context
def rm_command(ctx: click.Context, models: tuple[str, ...], force: bool, everything: bool) -> int:
    """Remove MODELS. A name removes that name, and the last name the model; an id removes the model.

    A model in use is not removed unless --force is given; requests in progress then finish first. If one of
    several models cannot be removed, the others are, and the exit code is 1.
    """
    if bool(models) == everything:
        raise click.UsageError(
            "Name models, or use --all." if not models else "Name models or use --all, not both."
        )
    client = client_for(settings_of(ctx))
    query = f"?force={'true' if force else 'false'}"
    if everything:
        client.delete(f"/models/purge{query}", timeout=None)
        click.echo("Removed all models.")
        return exit_codes.OK
    outcomes = [_remove(client, model, query) for model in models]
    return exit_codes.OK if all(outcomes) else exit_codes.FAILED


def _remove(client: HttpClient, model: str, query: str) -> bool:
    path = path_of("models", model) + query
    try:
        with client.open("DELETE", path) as answer:
            gone = json.loads(answer.read() or b"[]")
            freed, kept = (int(answer.headers.get(name) or 0) for name in ("x-freed-bytes", "x-kept-bytes"))
    except RequestRefused as refused:
        sentence = f"There is no model {model} here." if refused.status == 404 else str(refused)
        click.echo(f"{style('Error:', fg='red')} {sentence}", err=True)
        return False
    for step in gone:
        for what, name in step.items():
            click.echo(f"{what}: {name}")
    if any("Deleted" in step for step in gone) and freed + kept:
        stay = f"; {format_size(kept)} stay in use by other models or programs" if kept else ""
        announce(f"Freed {format_size(freed)}{stay}.")
    elif gone and "Deleted" not in gone[-1]:
        announce("Nothing was freed: the model has other names.")
    return True


@click.command("purge")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-f", "--force", is_flag=True, help="Also models in use, once their requests are done.")
@click.pass_context
def purge_command(ctx: click.Context, yes: bool, force: bool) -> None:
    """Remove all models, what was configured for them, their conversations, and all downloads. Asks first."""
    client = client_for(settings_of(ctx))
    models = client.get("/models") or []
    used = client.get("/engines/df", timeout=120.0) or {}
    before = _model_bytes(used)
    if not models and not before:
        click.echo("There are no models in the store.")
        return
    count = f"{len(models)} model{'' if len(models) == 1 else 's'}"
    question = f"Remove {count} and all downloads of models ({format_size(before)})?"
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"{question} Nothing was removed: to agree without a terminal, add --yes.")
        click.confirm(question, abort=True, err=True)
    client.delete(f"/models/purge?force={'true' if force else 'false'}", timeout=None)
    freed = before - _model_bytes(client.get("/engines/df", timeout=120.0) or {})
    click.echo(f"Removed {count}; freed {format_size(max(0.0, freed))}.")


def _model_bytes(used: Mapping[str, Any]) -> float:
    return sum(float(used.get(f"{one}_disk_usage") or 0) for one in ("models", "unfinished", "conversations"))


class _ModelsGroup(Subcommands):
    """With the commands of other modules, which are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), "adopt"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "adopt":
            from greenroom.runner.cli.adopt import adopt_command

            return adopt_command
        return super().get_command(ctx, cmd_name)


@click.group("models", cls=_ModelsGroup, invoke_without_command=True)
@click.pass_context
def models_command(ctx: click.Context) -> int:
    """List the models in the store."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command, model=None, as_json=False, quiet=False)
    return exit_codes.OK


@models_command.command("verify")
@click.argument("models", nargs=-1, type=ModelName())
@click.pass_context
def verify_models(ctx: click.Context, models: tuple[str, ...]) -> int:
    """Compare the hash of every file of MODELS (default: all) with what was downloaded.

    A damaged model is removed from the list, and the next pull downloads what is missing. Exits 1 if any is
    damaged.
    """
    from greenroom.runner.cli.jobs import verify

    client = client_for(settings_of(ctx))
    names = models or tuple((model.get("tags") or [model["id"]])[0] for model in client.get("/models") or ())
    whole = True
    for name in names:
        try:
            click.echo(verify(client, name))
        except GreenroomError as problem:
            if isinstance(problem, RequestRefused) and problem.status >= 500:
                raise
            whole = False
            click.echo(f"{style('Error:', fg='red')} {problem}", err=True)
    return exit_codes.OK if whole else exit_codes.FAILED


@click.command("prune")
@click.option("--untagged", is_flag=True, help="Also remove models without a name.")
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON.")
@click.pass_context
def prune_command(ctx: click.Context, untagged: bool, as_json: bool) -> None:
    """Remove interrupted downloads and data that no model or backend needs. Running downloads continue."""
    pruned = client_for(settings_of(ctx)).post("/models/prune", {"untagged": untagged}, timeout=None) or {}
    if as_json:
        click.echo(json.dumps(pruned, indent=4))
        return
    for model_id in pruned.get("deleted") or ():
        click.echo(f"Deleted: {model_id}")
    freed = float(pruned.get("freed") or 0)
    click.echo(f"Freed {format_size(freed)}." if freed else "Nothing to remove.")
    if kept_for := pruned.get("kept_for"):
        names = ", ".join(kept_for)
        click.echo(f"Downloads for backends were kept, because {names} is being installed.")
