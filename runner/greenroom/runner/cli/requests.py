"""`greenroom requests`: the record of requests, from the daemon, or from its file when there is none."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import click

from greenroom.runner.cli.completion import ModelName
from greenroom.runner.cli.main import Subcommands, settings_of
from greenroom.runner.cli.output import announce, table, terminal_width
from greenroom.runner.cli.problem import Problem
from greenroom.runner.client.daemons import find, not_running
from greenroom.runner.client.http_client import HttpClient
from greenroom.runner.config import Settings
from greenroom.runner.units import format_duration

_HEADINGS = (
    "TIME",
    "ID",
    "MODEL",
    "ROUTE",
    "CLIENT",
    "WAITED",
    "FIRST",
    "TOOK",
    "TOKENS",
    "TOKENS/S",
    "ENDED",
)
_SPARE = ("ROUTE", "CLIENT", "TOKENS/S", "WAITED", "FIRST", "TOKENS", "TOOK")
_WIDTHS = (8, 14, 16, 28, 20, 7, 7, 7, 10, 8, 5)
"""Of columns whose rows come one by one."""
_ROUTE = 40
"""Characters of a route that are shown."""
_LAST = 30
_ENDINGS = {"": "running", "left": "client left", "died": "engine died", "cut": "cut off"}

Row = Mapping[str, Any]


@click.group("requests", cls=Subcommands, invoke_without_command=True)
@click.option("-f", "--follow", is_flag=True, help="Keep printing requests as they end.")
@click.option(
    "-n",
    "--last",
    type=click.IntRange(0, 1_000),
    default=_LAST,
    metavar="N",
    help="Only the last N requests.",
)
@click.option("--model", default="", metavar="NAME", help="Only requests to this model.")
@click.option(
    "--status", default="", metavar="STATUS", help="Only 404, 4xx, or left, died, cut, refused, running, …"
)
@click.option("--slow", default="", metavar="DURATION", help="Only with at least so long to the first token.")
@click.option("--since", default="", metavar="TIME", help="Only since 10m (ago), 14:03 or 2026-11-22T10:00.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with -f a request a line.")
@click.pass_context
def requests_command(ctx: click.Context, /, follow: bool, last: int, as_json: bool, **filters: str) -> None:
    """List the requests there were: what they asked for, what they waited for, and how they ended.

    Never what was said, unless `requests record` asked for it. Reads that succeeded are not among them. If
    the daemon is not running, the requests that it recorded are listed.
    """
    if ctx.invoked_subcommand is not None:
        return
    settings = settings_of(ctx)
    given = {name: text for name, text in filters.items() if text}
    daemon = find(settings)
    if follow:
        if daemon is None:
            raise not_running(settings)
        _follow(daemon.client(), {**given, "last": str(last), "follow": "true"}, as_json=as_json)
        return
    if daemon is not None:
        rows: Sequence[Row] = daemon.client().get(f"/requests?{urlencode({**given, 'last': last})}") or []
    else:
        rows = _from_file(settings, given, last)
    if as_json:
        click.echo(json.dumps(rows, indent=4, ensure_ascii=False))
    elif rows:
        click.echo(table(_HEADINGS, _cells(rows), spare=_SPARE, width=terminal_width()))
    else:
        announce("No request fits." if given else "No request has been recorded.")


@requests_command.command("show")
@click.argument("request_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(ctx: click.Context, request_id: str, as_json: bool) -> None:
    """Show one request, with what was said where that was recorded.

    ID is in the X-Request-Id header of its answer, such as r-1a2b3c4d-7.
    """
    settings = settings_of(ctx)
    name = request_id if request_id.startswith("r-") else f"r-{request_id}"
    daemon = find(settings)
    row: Row = daemon.client().get(f"/requests/{name}") if daemon is not None else _one(settings, name)
    click.echo(json.dumps(row, indent=4, ensure_ascii=False) if as_json else picture(row, terminal_width()))


@requests_command.command("record")
@click.argument("count", type=click.IntRange(0, 1_000), metavar="N")
@click.option("--model", metavar="NAME", type=ModelName(), help="Only of requests to this model.")
@click.pass_context
def record(ctx: click.Context, count: int, model: str | None) -> None:
    """Record what is said in the next N requests that a model answers: 0 ends that.

    At most 256 KB of each request and each answer; they are deleted with the request's row. To see them:
    greenroom requests show ID.
    """
    settings = settings_of(ctx)
    daemon = find(settings)
    if daemon is None:
        raise not_running(settings)
    daemon.client().post("/requests/record", {"count": count, "model": model or ""})
    if count:
        whose = f" to {model}" if model else ""
        which = f"the next {count:,} requests" if count > 1 else "the next request"
        click.echo(f"What is said in {which}{whose} will be recorded. To see it: greenroom requests show ID")
    else:
        click.echo("What is said in requests is not recorded any more.")


def _follow(client: HttpClient, query: Mapping[str, str], *, as_json: bool) -> None:
    with client.open("GET", f"/requests?{urlencode(query)}", timeout=None) as answer:
        headed = False
        for row in answer.objects():
            if as_json:
                click.echo(json.dumps(row, ensure_ascii=False))
            else:
                lines = [*_padded([_HEADINGS]), *_padded(_cells([row]))]
                spare = [lines[0][_HEADINGS.index(one)] for one in _SPARE]
                shown = table(lines[0], lines[1:], spare=spare, width=terminal_width())
                click.echo(shown if not headed else shown.split("\n", 1)[1])
                headed = True
            sys.stdout.flush()


def _padded(lines: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    for line in lines:
        *cells, last = zip(line, _WIDTHS, strict=True)
        yield [*(_shortened(cell, width).ljust(width) for cell, width in cells), last[0]]


def _from_file(settings: Settings, given: Mapping[str, str], last: int) -> list[Row]:
    import msgspec

    from greenroom.runner.diagnosis.times import parse_time
    from greenroom.runner.record.table import NotUsable, RecordReader, RowFilter
    from greenroom.runner.units import parse_duration

    if settings.host:
        raise not_running(settings)
    try:
        wanted = RowFilter(
            model=given.get("model", ""),
            status=given.get("status", "").lower(),
            slow=parse_duration(given.get("slow", "0")),
            since=parse_time(given["since"], time.time()) if "since" in given else 0.0,
        )
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    try:
        with RecordReader(settings.home) as reader:
            return [msgspec.to_builtins(row) for row in reader.rows(wanted, last)]
    except FileNotFoundError:
        return []
    except NotUsable as error:
        raise Problem(str(error), _BEGIN_AGAIN) from error


def _one(settings: Settings, name: str) -> Row:
    import msgspec

    from greenroom.runner.record.table import NotUsable, RecordReader

    if settings.host:
        raise not_running(settings)
    try:
        with RecordReader(settings.home) as reader:
            row, bodies = reader.row(name), reader.bodies(name)
    except FileNotFoundError:
        row = bodies = None
    except NotUsable as error:
        raise Problem(str(error), _BEGIN_AGAIN) from error
    if row is None:
        raise Problem(
            f"There is no request {name} in the record.",
            "Old requests and most reads are not in it. To list the others: greenroom requests",
        )
    said = {"request": bodies.request, "response": bodies.response, "cut": bodies.cut} if bodies else {}
    return {**msgspec.to_builtins(row), **said}


_BEGIN_AGAIN = "The next daemon replaces it with an empty one."


def _cells(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    return [_line(row) for row in rows]


def _line(row: Row) -> tuple[str, ...]:
    waited = row["queued"] + row["installing"] + row["loading"]
    read, written = row["tokens_in"], row["tokens_out"]
    tokens = f"{'?' if read is None else read}/{_estimated(row)}" if written is not None else ""
    return (
        _clock(row["at"]),
        row["id"],
        row["model"] or row["asked"],
        _shortened(f"{row['method']} {row['path']}"),
        row["caller"],
        format_duration(waited) if waited else "",
        "" if row["first_token"] is None else format_duration(row["first_token"]),
        format_duration(row["seconds"]),
        tokens,
        "" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:.1f}",
        _ended(row),
    )


def _clock(at: float) -> str:
    then, now = time.localtime(at), time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == now[:3] else "%d %b %H:%M", then)


def _shortened(text: str, longest: int = _ROUTE) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _ended(row: Row) -> str:
    how = _ENDINGS.get(row["outcome"], row["outcome"])
    status = f" {row['status']}" if row["status"] >= 400 and row["outcome"] != "left" else ""
    code = row["code"] if row["code"] != how else ""
    return f"{how}{status} {code}".rstrip()


def _estimated(row: Row) -> str:
    return f"~{row['tokens_out']}" if row["estimated"] else str(row["tokens_out"])


def picture(row: Row, width: int | None = None) -> str:
    """One request in lines, and what was said below, where that was recorded."""
    lines = [("Request", f"{row['id']}  {row['method']} {row['path']}"), *_facts(row)]
    text = table(lines[0], lines[1:], width=width)
    for title, said in (("What the client sent:", row.get("request")), ("The answer:", row.get("response"))):
        if said:
            text += f"\n\n{title}\n{said.rstrip()}"
    if row.get("cut"):
        text += "\n\nMore was said than is kept."
    return text


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    then = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["at"]))
    yield "Came", f"{then} from {_client(row)}"
    if row["model"] or row["asked"]:
        asked = f", asked for as {row['asked']}" if row["asked"] not in ("", row["model"]) else ""
        yield "Model", f"{row['model']}{asked}" if row["model"] else f"{row['asked']} (not in the store)"
    if row["engine"]:
        yield "Engine", f"{row['engine']} ({row['backend']})"
    waits = [
        (row["queued"], "in the queue"),
        (row["installing"], "for the backend"),
        (row["loading"], "for the model to be loaded"),
    ]
    if told := [f"{format_duration(number)} {what}" for number, what in waits if number]:
        yield "Waited", ", ".join(told)
    if row["first_token"] is not None:
        yield "First token", f"after {format_duration(row['first_token'])}"
    if row["tokens_out"] is not None:
        speed = row["tokens_per_second"]
        fast = f", {speed:.1f} a second" if speed is not None else ""
        read = "" if row["tokens_in"] is None else f"{row['tokens_in'] - (row['tokens_cached'] or 0)} read, "
        read += f"{row['tokens_cached']} known already, " if row["tokens_cached"] else ""
        yield "Tokens", f"{read}{_estimated(row)} written{fast}"
    if row["tokens_restored"]:
        since = f"{row['tokens_restored']} tokens from {_clock(row['restored_from'])}, {row['restored_why']}"
        yield "Restored", f"{since}; reading them takes {format_duration(row['seconds_saved'])}"
    elif row["restored_why"]:
        yield "Restored", f"nothing: {row['restored_why']}"
    when = f"after {format_duration(row['seconds'])}"
    yield "Ended", f"{_ended(row)}, {when}" if row["outcome"] else f"not yet, {when}"
    if row["sentence"]:
        yield "Because", row["sentence"]


def _client(row: Row) -> str:
    address = row["address"] if row["address"] != row["caller"] else ""
    parts = [one for one in (row["caller"], address, row["user_agent"]) if one]
    return ", ".join(parts) or "an unknown client"
