"""`greenroom configure`: how a model is loaded, and where each value comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from greenroom.runner.cli.completion import ModelName
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import announce, table, terminal_width
from greenroom.runner.client.daemons import client_for
from greenroom.runner.client.http_client import HttpClient, path_of
from greenroom.runner.units import format_duration, format_size, parse_keep_alive, parse_size

_FIELDS = {
    "context": "context-size",
    "slots": "slots",
    "keep-alive": "keep_alive",
    "prompt-cache": "prompt-cache",
    "require-device": "require-device",
    "flags": "runtime-flags",
}
"""What people type, and what the API calls it."""
_ALL = "all"
_SHORT_CONTEXT = 256
"""Tokens below which hardly a prompt and its answer fit."""
_SOURCES = {"package": "the model's package", "trained": "what the model was trained for"}


@click.command("configure")
@click.argument("model", type=ModelName())
@click.option(
    "--context", metavar="N", help="Tokens that each request may use; `max` is as many as the model supports."
)
@click.option("--slots", type=click.IntRange(min=1), metavar="N", help="Requests answered at the same time.")
@click.option("--keep-alive", metavar="DURATION", help="How long it stays loaded without requests: 30m, 0.")
@click.option("--pin/--unpin", default=None, help="Keep it loaded until it is stopped, or no longer.")
@click.option("--prompt-cache", metavar="SIZE", help="Memory for prompts kept after their requests: 500MB.")
@click.option("--require-device/--no-require-device", default=None, help="Load it on graphics devices only.")
@click.option("--flags", metavar="TEXT", help="The engine's own flags, as one text.")
@click.option(
    "--reset",
    multiple=True,
    is_flag=False,
    flag_value=_ALL,
    type=click.Choice([*_FIELDS, _ALL]),
    metavar="[SETTING]",
    help="Remove what was configured: all of it, or one setting.",
)
@click.option(
    "--mode",
    type=click.Choice(["completion", "embedding", "reranking"]),
    help="Of a model with several uses: which one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def configure_command(
    ctx: click.Context, /, model: str, mode: str | None, as_json: bool, **given: Any
) -> None:
    """Show how MODEL is loaded and where each value comes from, or change it.

    Changes hold from its next load, across restarts, until they are reset or the model is removed. A loaded
    model that is not in use is unloaded if it has to be loaded in another way.
    """
    body = _body(**given)
    client = client_for(settings_of(ctx))
    if body:
        wanted = {"model": model, "preload": False, **({"mode": mode} if mode else {}), **body}
        client.post("/engines/_configure", wanted, timeout=None)
    rows = settings_in_force(client, model, mode)
    if as_json:
        click.echo(json.dumps({"model": model, "settings": rows}, indent=4, ensure_ascii=False))
        return
    click.echo(shown(rows))
    if "context-size" in body:
        for sentence in _doubts(model, rows):
            announce(sentence)


def settings_in_force(client: HttpClient, model: str, mode: str | None = None) -> list[dict[str, Any]]:
    """The rows of `settings` that the daemon has for a model. Raises Problem without the model."""
    found = client.get(path_of("models", model)).get("settings") or ()
    return [row for row in found if mode in (None, row["mode"])]


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table; with several modes, one for each."""
    parts = []
    modes = list(dict.fromkeys(str(row["mode"]) for row in rows))
    names = {long: short for short, long in _FIELDS.items()}
    for mode in modes:
        lines = [
            (str(names.get(row["setting"], row["setting"])), value_of(row), _source(row))
            for row in rows
            if row["mode"] == mode
        ]
        headings = ("SETTING" if len(modes) == 1 else mode.upper(), "VALUE", "FROM")
        parts.append(table(headings, lines, width=terminal_width()))
    return "\n\n".join(parts)


def value_of(row: Mapping[str, Any]) -> str:
    """The value of one row, as people read it."""
    value, setting = row["value"], row["setting"]
    if value is None:
        return "decided when it is loaded"
    if setting == "context-size":
        return f"{value} tokens"
    if setting == "keep_alive":
        return format_duration(parse_keep_alive(value))
    if setting == "prompt-cache":
        return format_size(value) if value else "none"
    if isinstance(value, list):
        return " ".join(value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _source(row: Mapping[str, Any]) -> str:
    text = _SOURCES.get(row["source"], str(row["source"]))
    trained = row.get("trained")
    return f"{text} (trained for {trained})" if trained and trained != row["value"] else text


def _doubts(model: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for row in rows:
        if row["setting"] != "context-size" or row["source"] != "configured":
            continue
        value, trained = int(row["value"]), int(row.get("trained") or 0)
        if trained and value > trained:
            found.append(
                f"{model} was trained for {trained} tokens; with more than that in its context its answers "
                "may make no sense."
            )
        elif value < _SHORT_CONTEXT:
            found.append(f"A context of {value} tokens is too short for most prompts.")
    return found


def _body(
    *,
    context: str | None,
    slots: int | None,
    keep_alive: str | None,
    pin: bool | None,
    prompt_cache: str | None,
    require_device: bool | None,
    flags: str | None,
    reset: Sequence[str],
) -> dict[str, Any]:
    """What to send; empty if nothing is to change. Raises UsageError."""
    body: dict[str, Any] = {}
    resets = {_FIELDS[one] for one in (_FIELDS if _ALL in reset else reset)}
    if context is not None:
        body["context-size"] = context_of(context)
    if slots is not None:
        body["slots"] = slots
    if keep_alive is not None and pin is not None:
        raise click.UsageError("Use --keep-alive, or --pin or --unpin, not both.")
    if keep_alive is not None:
        body["keep_alive"] = keep_alive_of(keep_alive)
    elif pin:
        body["keep_alive"] = "-1"
    elif pin is False:
        resets.add("keep_alive")
    if prompt_cache is not None:
        try:
            body["prompt-cache"] = parse_size(prompt_cache)
        except ValueError as error:
            raise click.BadParameter(f"{error}.", param_hint="--prompt-cache") from error
    if require_device is not None:
        body["require-device"] = require_device
    if flags is not None:
        body["raw-runtime-flags"] = flags
    if _ALL in reset:
        # What is set now stays; the rest goes.
        resets -= {"runtime-flags" if name == "raw-runtime-flags" else name for name in body}
    if resets:
        body["reset"] = sorted(resets)
    return body


def context_of(text: str) -> int:
    """Tokens of `--context`; -1 for `max`. Raises BadParameter."""
    if text.lower() == "max":
        return -1
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(
            f"{text!r} is not a number of tokens; write 8192, or max.", param_hint="--context"
        )
    return int(text)


def keep_alive_of(text: str) -> str:
    """A duration as the API takes it. Raises BadParameter."""
    try:
        seconds = parse_keep_alive(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}, or forever.", param_hint="--keep-alive") from error
    return "-1" if seconds < 0 else f"{seconds:g}s"
