"""`greenroom list`: the models that are here."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.names import ModelName
from greenroom.runner.cli.table import table, terminal_width
from greenroom.runner.units import format_duration

_HEADINGS = (
    "MODEL NAME",
    "PARAMETERS",
    "QUANTIZATION",
    "ARCHITECTURE",
    "MODEL ID",
    "CREATED",
    "CONTEXT",
    "SIZE",
)
_SPARE = ("CONTEXT", "ARCHITECTURE", "QUANTIZATION", "PARAMETERS")


@click.command("list")
@click.argument("model", required=False, type=ModelName())
@click.option("--json", "as_json", is_flag=True, help="Print what the daemon says, as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.pass_context
def command(ctx: click.Context, model: str | None, as_json: bool, quiet: bool) -> None:
    """List the models that are here, or only MODEL."""
    from greenroom.runner.models.references import familiar

    models = client_for(settings_of(ctx)).get("/models") or []
    if model:
        wanted = familiar(model)
        models = [
            each
            for each in models
            if wanted in _names(each)
            or wanted in {name.rpartition("/")[2].partition(":")[0] for name in _names(each)}
            or each["id"].startswith((model, f"sha256:{model}"))
        ]
    if as_json:
        click.echo(json.dumps(models, indent=4, ensure_ascii=False))
    elif quiet:
        click.echo("\n".join(_short_id(each) for each in models))
    elif not models:
        click.echo(f"There is no model {model} here." if model else "There are no models here yet.", err=True)
        click.echo(f"Fetch one: greenroom pull {model or 'smollm2'}", err=True)
    else:
        rows = [row for each in models for row in _rows(each)]
        listed = sorted(rows, key=lambda row: row[0].lower())
        click.echo(table(_HEADINGS, listed, spare=_SPARE, width=terminal_width()))


def _names(model: dict[str, Any]) -> list[str]:
    from greenroom.runner.models.references import familiar

    return [familiar(tag) for tag in model.get("tags") or ()]


def _rows(model: dict[str, Any]) -> list[tuple[str, ...]]:
    config = model.get("config") or {}
    context = config.get("context_size") or (config.get("gguf") or {}).get("llama.context_length") or ""
    created = float(model.get("created") or 0)
    more = (
        str(config.get("parameters") or ""),
        str(config.get("quantization") or ""),
        str(config.get("architecture") or ""),
        _short_id(model),
        f"{format_duration(max(0.0, time.time() - created))} ago" if created else "",
        str(context),
        str(config.get("size") or ""),
    )
    return [(name, *more) for name in _names(model) or ["<none>"]]


def _short_id(model: dict[str, Any]) -> str:
    return str(model["id"])[7:19]
