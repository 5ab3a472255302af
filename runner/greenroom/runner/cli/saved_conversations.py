"""`greenroom conversations`: what engines have read and the disk keeps."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import click

from greenroom.runner import exit_codes
from greenroom.runner.cli.completion import ModelName, OneOf, conversation_ids, model_names
from greenroom.runner.cli.engines import shown_name
from greenroom.runner.cli.main import Subcommands, settings_of
from greenroom.runner.cli.output import announce, say, style, table, terminal_width
from greenroom.runner.client.daemons import client_for
from greenroom.runner.client.errors import RequestRefused
from greenroom.runner.units import format_duration, format_size

_HEADINGS = ("ID", "MODEL NAME", "BACKEND", "TOKENS", "SIZE", "USED", "EXPIRES", "RESTORED", "OWNER", "SAVED")
_ID = re.compile(r"c-[0-9a-f]{12}")
_SPARE = ("OWNER", "RESTORED", "BACKEND", "EXPIRES")


@click.group("conversations", cls=Subcommands, invoke_without_command=True)
@click.option("--model", metavar="NAME", type=ModelName(), help="Only those with this model.")
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as JSON, with bytes.")
@click.pass_context
def conversations_command(ctx: click.Context, model: str | None, as_json: bool) -> None:
    """List what is saved of conversations, so that their next turns need not read it again.

    Nothing here says what was said; the files on the disk are computed from it. See docs/conversations.md.
    """
    if ctx.invoked_subcommand is not None:
        return
    query = f"?{urlencode({'model': model})}" if model else ""
    found: dict[str, Any] = client_for(settings_of(ctx)).get(f"/conversations{query}") or {}
    if as_json:
        click.echo(json.dumps(found, indent=4, ensure_ascii=False))
        return
    if found.get("off"):
        announce(f"No conversations are saved: {found['off']}.")
        return
    rows = [_cells(one, time.time()) for one in found.get("conversations") or ()]
    if rows:
        click.echo(table(_HEADINGS, rows, spare=_SPARE, width=terminal_width()))
    kept, most, written, daily = (
        format_size(float(found.get(name) or 0))
        for name in ("bytes", "limit", "written_today", "write_limit")
    )
    say(
        f"{'' if rows else 'No conversation is saved. '}{kept} of at most {most} on the disk; "
        f"{written} of at most {daily} written in 24 hours."
    )


@conversations_command.command("rm")
@click.argument("names", nargs=-1, metavar="[MODEL|ID]...", type=OneOf(conversation_ids, model_names))
@click.option("--all", "everything", is_flag=True, help="Remove all of them.")
@click.pass_context
def remove(ctx: click.Context, names: tuple[str, ...], everything: bool) -> int:
    """Remove saved conversations: by their ids, or all with a model.

    Their next turns read the whole prompt again.
    """
    if bool(names) == everything:
        raise click.UsageError(
            "Name a model or a conversation, or use --all."
            if not names
            else "Name conversations or use --all, not both."
        )
    client, count, freed, left, failed = client_for(settings_of(ctx)), 0, 0, 0, False
    for name in names or ("",):
        path = (
            f"/conversations/{name}"
            if _ID.fullmatch(name)
            else f"/conversations?{urlencode({'model': name})}"
        )
        try:
            answer = client.delete(path if name else "/conversations") or {}
        except RequestRefused as refused:
            if not names:
                raise
            failed = True
            click.echo(f"{style('Error:', fg='red')} {refused}", err=True)
            continue
        count, freed = count + int(answer["removed"]), freed + int(answer["freed"])
        left += int(answer["left"])
    if not failed or count:
        say(f"Removed {count} conversation{'' if count == 1 else 's'}; freed {format_size(float(freed))}.")
    if left:
        click.echo(
            f"{style('Error:', fg='red')} The files of {left} could not be removed; they are not used any "
            "more. The daemon's log says why, and it will try again.",
            err=True,
        )
    return exit_codes.FAILED if failed or left else exit_codes.OK


def _cells(row: Mapping[str, Any], now: float) -> tuple[str, ...]:
    reason = str(row.get("reason") or "").replace("_", "-")
    return (
        str(row["id"]),
        shown_name(str(row.get("model") or "")),
        str(row.get("backend") or ""),
        f"{int(row.get('tokens') or 0):,}",
        format_size(float(row.get("size") or 0)),
        f"{format_duration(max(0.0, now - float(row.get('used_at') or now)))} ago",
        f"in {format_duration(max(0.0, float(row.get('expires_at') or now) - now))}",
        str(int(row.get("restored") or 0)),
        str(row.get("owner") or ""),
        f"{reason} ({row['cause']})" if row.get("cause") else reason,
    )
