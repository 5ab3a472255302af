"""`greenroom inspect`: what a model is, and what would serve it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from greenroom.runner.cli.client import path_of
from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.names import ModelName
from greenroom.runner.units import format_size

_FACTS = (
    ("format", "Format"),
    ("architecture", "Architecture"),
    ("parameters", "Parameters"),
    ("quantization", "Quantization"),
    ("context_size", "Context"),
)


@click.command("inspect")
@click.argument("model", type=ModelName(catalogue=True))
@click.option("-r", "--remote", is_flag=True, help="What its source has, not what is here.")
@click.option("--json", "as_json", is_flag=True, help="Print what the daemon says, as JSON.")
@click.option("--openai", is_flag=True, help="Print it as OpenAI's clients see it, as JSON.")
@click.pass_context
def command(ctx: click.Context, model: str, remote: bool, as_json: bool, openai: bool) -> None:
    """Show what MODEL is, of which files it is made, what would serve it here, and the memory that needs."""
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
        click.echo("\n".join(_lines(found)))


def _lines(model: dict[str, Any]) -> list[str]:
    from greenroom.runner.models.references import familiar

    config = model.get("config") or {}
    facts = {
        "Model": str(model.get("id") or "(it gets its id when it is pulled)"),
        "Tags": ", ".join(familiar(tag) for tag in model.get("tags") or ()),
        "Source": str(model.get("source") or ""),
        "Created": _moment(float(model.get("created") or 0)),
        **{label: str(config.get(name) or "") for name, label in _FACTS},
        "Size": format_size(float(model["bytes"])) if model.get("bytes") else str(config.get("size") or ""),
    }
    lines = [f"{label + ':':<14} {value}" for label, value in facts.items() if value]
    if "chat_template" in model:
        lines.append(f"{'Chat template:':<14} {_template(model['chat_template'])}")
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
    return [*lines, "", "Served by:", *serving] if serving else lines


def _template(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none: the backend formats chats by its own rules"
    names = ", ".join(found.get("names") or ())
    return f"{found['file']} ({names})" if names else str(found["file"])


def _served(mode: dict[str, Any]) -> list[str]:
    backend = str(mode.get("backend") or "nothing")
    state = "" if mode.get("installed") else " (not installed)"
    memory = ""
    if mode.get("memory"):
        room = format_size(float(mode["memory_budget"]))
        verdict = f"of {room}" if mode.get("fits") else f"more than the {room} that engines may use"
        memory = f", needs {format_size(float(mode['memory']))} of memory ({verdict})"
    return [
        f"  {mode['mode']}: {backend}{state}{memory}",
        *(f"    {one}" for one in mode.get("reasons") or ()),
    ]


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds") if seconds else ""
