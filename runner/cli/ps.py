"""`greenroom ps`: the engines that run."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.table import table
from greenroom.runner.quantities import format_duration, format_size, parse_keep_alive

_HEADINGS = ("MODEL NAME", "BACKEND", "MODE", "STATE", "PID", "MEMORY", "ENGINE", "UNTIL")


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="Print what the daemon says, as JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the engines that run, and how long each stays."""
    settings = settings_of(ctx)
    engines = client_for(settings).get("/engines/ps") or []
    if as_json:
        click.echo(json.dumps(engines, indent=4, ensure_ascii=False))
        return
    rows = [_row(engine, settings.keep_alive) for engine in engines]
    click.echo(table(_HEADINGS, sorted(rows)))


def _row(engine: dict[str, Any], keep_alive: float) -> tuple[str, ...]:
    return (
        _name(str(engine.get("model_name", ""))),
        str(engine.get("backend_name", "")),
        str(engine.get("mode", "")),
        str(engine.get("state", "")),
        str(engine.get("pid") or ""),
        format_size(float(engine["memory"])) if engine.get("memory") else "",
        str(engine.get("engine_id", "")),
        _until(engine, keep_alive),
    )


def _name(name: str) -> str:
    # As `references.familiar`, which would import a good deal for three prefixes.
    return name.removeprefix("docker.io/").removeprefix("ai/").removesuffix(":latest")


def _until(engine: dict[str, Any], otherwise: float) -> str:
    if engine.get("loading"):
        return "Loading..."
    try:
        keep_alive = parse_keep_alive(str(engine.get("keep_alive") or otherwise))
    except ValueError:
        keep_alive = otherwise
    if keep_alive < 0:
        return "Forever"
    idle = 0.0 if engine.get("in_use") else _seconds_since(str(engine.get("last_used") or ""))
    left = keep_alive - idle
    return f"{format_duration(round(left))} from now" if left > 0 else "Expiring"


def _seconds_since(moment: str) -> float:
    """How long ago an RFC 3339 time was; 0 for the zero time, which stands for now."""
    from datetime import datetime

    if not moment or moment.startswith("0001-"):
        return 0.0
    try:
        # Nanoseconds are more than `fromisoformat` takes.
        head, _, rest = moment.partition(".")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        zone = rest[len(digits) :] or ("" if rest else head[19:])
        text = f"{head[:19]}.{digits[:6]:0<6}{zone}".replace("Z", "+00:00")
        return max(0.0, time.time() - datetime.fromisoformat(text).timestamp())
    except ValueError:
        return 0.0
