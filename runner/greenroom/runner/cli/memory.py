"""`greenroom memory` and `greenroom queue`: who holds memory, and which requests wait."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from greenroom.runner.cli.engines import shown_name
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import say, table, terminal_width
from greenroom.runner.client.daemons import client_for
from greenroom.runner.units import format_duration, format_size

_HELD = ("MODEL NAME", "BACKEND", "RESERVED", "USED", "WEIGHTS", "CONTEXT", "PROMPTS", "OTHER", "UNTIL")
_HELD_SPARE = ("OTHER", "PROMPTS", "CONTEXT", "WEIGHTS", "BACKEND")
_DEVICES = ("DEVICE", "TOTAL", "FOR ENGINES", "RESERVED", "FREE")
_WAITING = ("PLACE", "MODEL NAME", "WAITED", "LEFT", "CALLER", "REQUEST", "WAITS FOR")
_WAITING_SPARE = ("CALLER", "REQUEST", "LEFT")


@click.command("memory")
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON, with bytes.")
@click.pass_context
def memory_command(ctx: click.Context, as_json: bool) -> None:
    """Show how much memory engines may use, and which model holds how much of it and for what.

    CONTEXT is the room for the requests' tokens in all slots, PROMPTS what is kept of earlier prompts. Memory
    is reserved before an engine is started; USED is measured.
    """
    client = client_for(settings_of(ctx))
    ledger = client.get("/engines/ledger") or {}
    engines = client.get("/engines/ps") or []
    if as_json:
        accounts = {one["engine_id"]: one for one in engines}
        for one in ledger.get("engines") or ():
            spec = accounts.get(one["engine_id"]) or {}
            one |= {"model": spec.get("model_name"), "parts": spec.get("promises") or []}
        click.echo(json.dumps(ledger, indent=4, ensure_ascii=False))
        return
    budget, reserved, free = (format_size(float(ledger[name])) for name in ("budget", "promised", "free"))
    say(f"Engines may use {budget} of memory: {reserved} reserved, {free} free now.")
    if engines:
        rows = [_held(one) for one in engines]
        click.echo(table(_HELD, rows, spare=_HELD_SPARE, width=terminal_width()))
    if devices := ledger.get("devices"):
        names = ("total", "budget", "promised", "free")
        lines = [(str(one["name"]), *(format_size(float(one[name])) for name in names)) for one in devices]
        click.echo(f"\n{table(_DEVICES, lines, width=terminal_width())}")
    waiting = int(ledger.get("waiting") or 0)
    if waiting:
        say(f"{waiting} request{'s are' if waiting > 1 else ' is'} queued. See: greenroom queue")


def _held(engine: Mapping[str, Any]) -> tuple[str, ...]:
    parts = [one for one in engine.get("promises") or () if not one.get("device")]
    devices = sum(int(one["total"]) for one in engine.get("promises") or () if one.get("device"))
    weights, cache, prompts, other = 0, 0, 0, 0
    for one in parts:
        weights += int(one.get("weights") or 0)
        cache += int(one.get("cache") or 0) * max(1, int(one.get("slots") or 1))
        prompts += int(one.get("prompt_cache") or 0)
        other += int(one.get("compute") or 0) + int(one.get("learned") or 0)
    left = engine.get("expires_in")
    until = (
        "in use" if engine.get("in_use") else format_duration(float(left)) if left is not None else "forever"
    )
    if engine.get("state") != "ready":
        until = str(engine.get("state"))
    on_devices = f" + {format_size(devices)} on devices" if devices else ""
    return (
        shown_name(str(engine.get("model_name") or "")),
        str(engine.get("backend_name") or ""),
        _size(engine.get("memory")) + on_devices,
        _size(engine.get("measured")),
        *(format_size(float(size)) for size in (weights, cache, prompts, other)),
        until,
    )


def _size(value: Any) -> str:
    return format_size(float(value)) if value else ""


@click.command("queue")
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON.")
@click.pass_context
def queue_command(ctx: click.Context, as_json: bool) -> None:
    """List queued requests: what each waits for, since when, and when it gives up."""
    waiting = client_for(settings_of(ctx)).get("/engines/queue") or []
    if as_json:
        click.echo(json.dumps(waiting, indent=4, ensure_ascii=False))
    elif not waiting:
        click.echo("No request is queued.")
    else:
        rows = [
            (
                str(one.get("place") or "new"),
                shown_name(str(one.get("model_ref") or "")),
                format_duration(round(float(one.get("waited") or 0))),
                format_duration(round(max(0.0, float(one.get("left") or 0)))),
                str(one.get("caller") or ""),
                str(one.get("request_id") or ""),
                ": ".join(str(one[key]) for key in ("message", "progress") if one.get(key)),
            )
            for one in waiting
        ]
        click.echo(table(_WAITING, rows, spare=_WAITING_SPARE, width=terminal_width()))
